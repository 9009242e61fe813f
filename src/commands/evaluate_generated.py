"""Evaluate files of generated crystals against files of real crystals."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig
from pymatgen.core import Structure
from rich.console import Console

from src.commands.generated_tables import figure_text, metrics_table, per_crystal
from src.commands.references import (
    Reference,
    find_reference,
    name_of_input,
    num_not_written,
    read_crystals,
    samples_file,
)
from src.data.structures import NamedStructure, Skipped
from src.metrics.generation.evaluate import Evaluation, evaluate_set
from src.metrics.generation.fingerprint_distances import CoverageCutoffs
from src.metrics.generation.judging import EvaluationOptions, evaluate_part
from src.metrics.generation.parts import checksum, read_parts, write_part
from src.metrics.matching import MatcherSettings
from src.utils.errors import UserError
from src.utils.output import new_folder, output_of
from src.utils.shards import shard_of
from src.utils.strict_json import write_json

if TYPE_CHECKING:
    from src.commands.generated_latents import Latents
    from src.report.judged import Energies
    from src.vae_module import VAEModule

__all__ = [  # some are of other modules, and can be imported from here as before
    "Reference",
    "evaluate_files",
    "evaluate_shard",
    "figure_text",
    "find_reference",
    "metrics_table",
    "name_of_input",
    "read_crystals",
    "samples_file",
]

log = logging.getLogger(__name__)


def evaluate_files(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate generated crystals as configured in `configs/eval_generated.yaml`.

    Writes these files to `cfg.output` (by default `eval_NAME` next to the input):

    - `metrics.json`: the metrics from `evaluate_generated`, `num_skipped` (number of entries in the
      input that could not be read) and `num_not_written` (number of samples that `samples.json`
      lists as not written), which are not included in any fraction, and the paths of the input and
      the references. With `cfg.encoder`, also `encoder` and the figures from `latent_figures`.
    - `per_crystal.csv`: `id`, `formula`, `num_atoms`, `valid_structure`, `valid_composition`,
      `unique`, `duplicate_of` (ID of the earlier crystal that it matches), `novel`, `known_as` (ID
      of the reference crystal that it matches), `known_composition`, `known_prototype` (whether it
      matches a reference crystal irrespective of elements), `reason`. `unique`, `duplicate_of`,
      `novel`, `known_as` and `known_prototype` are empty for crystals that are structurally
      invalid.
    - `skipped.csv`: the entries that could not be read, with the reasons.

    - `report.html`: with `cfg.report`, a page with crystals and distributions, see `write_page`.

    With `cfg.shard`, only what takes long is done, for a part of the crystals, see
    `evaluate_shard`; with `cfg.merge`, it is read from the folders of all parts.

    Returns:
        The content of `metrics.json`.

    Raises:
        UserError: if the input, a reference, the encoder, the results of `eval_stability` or the
            output folder cannot be used, or if a package from the extra `generation` is not
            installed.
    """
    if cfg.stability is not None and not cfg.report:
        raise UserError(f"stability={cfg.stability} is for the report only: set report=true")
    if cfg.shard is not None and cfg.merge is not None:
        raise UserError("set either shard=NUMBER/COUNT or merge=[FOLDER,FOLDER,...]")
    source = Path(cfg.input).expanduser().absolute()
    output = output_of(cfg, source.with_name(f"eval_{name_of_input(source)}"))
    if cfg.shard is not None:
        return evaluate_shard(cfg, samples_file(source), output)
    source = samples_file(source)
    vae = None if cfg.encoder is None else _load_encoder(cfg)
    with new_folder(output, marker="metrics.json", overwrite=cfg.overwrite) as folder:
        crystals, options = _read_all(cfg, source), _options(cfg)
        energies = _read_energies(cfg, crystals) if cfg.report else None
        part = None
        if cfg.merge is not None:
            part = read_parts(
                [Path(each).expanduser() for each in cfg.merge],
                _settings_of_parts(crystals, options),
            )
        try:
            found = evaluate_set(
                *crystals.structures(),
                options,
                scale_reference=None if crystals.scale is None else _structures(crystals.scale),
                cutoffs=CoverageCutoffs(**cfg.cutoffs),
                seed=cfg.seed,
                part=part,
            )
        except ImportError as error:
            raise UserError(str(error)) from error
        metrics = found.metrics
        latents = None
        if vae is not None:
            latents, figures = _compare_latents(cfg, vae, crystals, found)
            metrics |= figures
        metrics |= {
            "num_skipped": len(crystals.skipped),
            "num_not_written": num_not_written(source),
            "input": str(source),
            **crystals.places,
        }
        write_json(folder / "metrics.json", metrics)
        rows = per_crystal(crystals.items, found.verdicts, crystals.known)
        rows.to_csv(folder / "per_crystal.csv", index=False)
        pd.DataFrame(crystals.skipped, columns=["file", "reason"]).to_csv(
            folder / "skipped.csv", index=False
        )
        if cfg.report:
            _write_report(cfg, folder, crystals, found, latents, energies)
    Console().print(metrics_table(metrics))
    log.info("The results are in %s", output)
    return metrics


def evaluate_shard(cfg: DictConfig, source: Path, output: Path) -> dict[str, Any]:
    """Do the part of an evaluation that `cfg.shard` names, for a later call with `merge`.

    Writes `part.json` and `part.safetensors` to `output` with the number of the part appended, see
    `write_part`.

    Returns:
        What the part was computed with.

    Raises:
        UserError: as `evaluate_files`, or if there is no such part.
    """
    crystals, options = _read_all(cfg, source), _options(cfg)
    _, shard = shard_of(cfg.shard, len(crystals.items))
    assert shard is not None
    number, count = map(int, shard.split("/"))
    output = output.with_name(f"{output.name}_{shard.replace('/', '_of_')}")
    settings = _settings_of_parts(crystals, options)
    with new_folder(output, marker="part.json", overwrite=cfg.overwrite) as folder:
        try:
            part = evaluate_part(
                *crystals.structures(),
                number=number,
                count=count,
                options=options,
            )
        except ImportError as error:
            raise UserError(str(error)) from error
        write_part(folder, part, number, count, settings)
    log.info("Part %s is in %s; merge=[...] joins all parts", shard, output)
    return settings


def _load_encoder(cfg: DictConfig) -> VAEModule:
    from src.commands.generated_latents import load_encoder  # slow to import, and seldom needed

    if cfg.encoder_size < 1:
        raise UserError(f"encoder_size must be at least 1, not {cfg.encoder_size}")
    return load_encoder(cfg.encoder, cfg.device)


def _compare_latents(
    cfg: DictConfig, vae: VAEModule, crystals: _Crystals, found: Evaluation
) -> tuple[tuple[Latents, Latents], dict[str, Any]]:
    """Latents of generated crystals and of the reference; and their figures, with the encoder."""
    from src.commands.generated_latents import draw_latents, latent_figures

    sets = [(crystals.items, found.judged), (crystals.known, found.known)]
    if crystals.test is not None:
        sets.append((crystals.test, found.test))
    drawn = [
        draw_latents(vae, [items[i].structure for i in indices], cfg.encoder_size, cfg.seed)
        for items, indices in sets
    ]
    figures = latent_figures(drawn[0], drawn[1], drawn[2] if len(drawn) > 2 else None, cfg.seed)
    return (drawn[0], drawn[1]), {**figures, "encoder": str(cfg.encoder)}


def _read_energies(cfg: DictConfig, crystals: _Crystals) -> Energies | None:
    from src.commands.generated_report import read_energies  # imports matplotlib and plotly

    source = Path(cfg.input).expanduser().absolute()
    return read_energies(
        None if cfg.stability is None else Path(cfg.stability).expanduser(),
        source.with_name(f"stability_{name_of_input(source)}"),
        [item.id for item in crystals.items],
    )


def _write_report(
    cfg: DictConfig,
    folder: Path,
    crystals: _Crystals,
    found: Evaluation,
    latents: tuple[Latents, Latents] | None,
    energies: Energies | None,
) -> None:
    from src.commands.generated_report import write_page

    sets = (crystals.items, crystals.known, crystals.test)
    write_page(folder / "report.html", found, *sets, latents, energies, cfg.seed)


@dataclass(frozen=True, slots=True)
class _Crystals:
    """All crystals of an evaluation.

    Attributes:
        items, skipped: the generated crystals, and what could not be read.
        known: the reference.
        test: the test reference; None if it is the reference.
        scale: what scales composition fingerprints; None for the test reference.
        places: what `metrics.json` says of where the references are.
    """

    items: list[NamedStructure]
    skipped: list[Skipped]
    known: list[NamedStructure]
    test: list[NamedStructure] | None
    scale: list[NamedStructure] | None
    places: dict[str, str]

    def structures(self) -> tuple[list[Structure], list[Structure], list[Structure] | None]:
        """The generated crystals, the reference and the test reference."""
        test = None if self.test is None else _structures(self.test)
        return _structures(self.items), _structures(self.known), test


def _read_all(cfg: DictConfig, source: Path) -> _Crystals:
    if cfg.max_test_reference is not None and cfg.max_test_reference < 1:
        raise UserError(f"max_test_reference must be at least 1, not {cfg.max_test_reference}")
    items, skipped = read_crystals(source)
    read = cache(read_crystals)  # several splits can be in the same files
    root = Path(cfg.reference).expanduser()
    reference = find_reference(root, cfg.reference_split, "reference_split", cfg.split_file)
    known = reference.crystals(read)
    test_split = (cfg.test_reference_split, "test_reference_split")
    if cfg.test_reference is not None:
        test_reference = find_reference(cfg.test_reference, *test_split)
    elif cfg.reference_split is not None and reference == Reference(root):
        test_reference = reference  # there are no splits
    else:
        test_reference = find_reference(root, *test_split, cfg.split_file)
    test = known if test_reference == reference else test_reference.crystals(read)
    scale = None
    if cfg.scale_reference is not None:
        scale = find_reference(cfg.scale_reference, "train").crystals(read)
    test = _random_subset(test, cfg.max_test_reference, cfg.seed)
    places = {
        "reference": str(reference),
        "test_reference": str(test_reference),
        "scale_reference": str(cfg.scale_reference or test_reference),
    }
    return _Crystals(items, skipped, known, None if test is known else test, scale, places)


def _options(cfg: DictConfig) -> EvaluationOptions:
    return EvaluationOptions(
        settings=MatcherSettings(**cfg.tolerances),
        matcher=cfg.matcher,
        num_workers=cfg.num_workers,
        match_timeout=cfg.match_timeout,
        fingerprint_timeout=cfg.fingerprint_timeout,
        fingerprints=cfg.fingerprints,
        prototypes=cfg.prototypes,
        progress=True,
    )


def _settings_of_parts(crystals: _Crystals, options: EvaluationOptions) -> dict[str, Any]:
    """What the results of a part depend on, as JSON has it, with checksums in place of crystals."""
    names = ("input", "reference", "test_reference")
    checksums = {
        name: None if structures is None else checksum(structures)
        for name, structures in zip(names, crystals.structures(), strict=True)
    }
    others = asdict(options)
    tolerances = others.pop("settings")
    del others["num_workers"], others["progress"]  # which change no result
    return {**checksums, **others, "tolerances": tolerances}


def _structures(items: Sequence[NamedStructure]) -> list[Structure]:
    return [item.structure for item in items]


def _random_subset(
    items: list[NamedStructure], size: int | None, seed: int
) -> list[NamedStructure]:
    """At most `size` random items, in the order given."""
    if size is None or size >= len(items):
        return items
    indices = np.random.default_rng(seed).choice(len(items), size, replace=False)
    return [items[i] for i in sorted(indices)]
