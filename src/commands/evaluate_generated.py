"""Evaluate files of generated crystals against files of real crystals."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig
from pymatgen.core import Structure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from src.data.readers import SPLIT_NAMES, DataError
from src.data.split_files import find_split, find_splits_csv, folders_with_splits
from src.data.splits import look_up_splits
from src.data.structures import NamedStructure, Skipped, StructureReader, iter_structures
from src.metrics.generation.evaluate import (
    CoverageCutoffs,
    Verdict,
    evaluate_generated,
    evaluate_part,
)
from src.metrics.generation.intervals import half_width, interval_name
from src.metrics.generation.parts import checksum, read_parts, write_part
from src.metrics.matching import MatcherSettings
from src.utils.errors import UserError
from src.utils.formulas import reduced_formula
from src.utils.output import new_folder, output_of
from src.utils.shards import shard_of
from src.utils.strict_json import write_json

log = logging.getLogger(__name__)

_SAMPLE_FILES = {"samples.extxyz", "samples.json", "cifs", "cifs.zip", "report.html"}
_MAX_LOGGED = 20  # skipped entries; all of them are in skipped.csv


def evaluate_files(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate generated crystals as configured in `configs/eval_generated.yaml`.

    Writes these files to `cfg.output` (by default `eval_NAME` next to the input):

    - `metrics.json`: the metrics from `evaluate_generated`, `num_skipped` (number of entries in the
      input that could not be read; they are not included in any fraction), and the paths of the
      input and the references.
    - `per_crystal.csv`: `id`, `formula`, `num_atoms`, `valid_structure`, `valid_composition`,
      `unique`, `duplicate_of` (ID of the earlier crystal that it matches), `novel`, `known_as` (ID
      of the reference crystal that it matches), `known_composition`, `known_prototype` (whether it
      matches a reference crystal irrespective of elements), `reason`. `unique`, `duplicate_of`,
      `novel`, `known_as` and `known_prototype` are empty for crystals that are structurally
      invalid.
    - `skipped.csv`: the entries that could not be read, with the reasons.

    With `cfg.shard`, only what takes long is done, for a part of the crystals, see
    `evaluate_shard`; with `cfg.merge`, it is read from the folders of all parts.

    Returns:
        The content of `metrics.json`.

    Raises:
        UserError: if the input, a reference or the output folder cannot be used, or if a package
            from the extra `generation` is not installed.
    """
    if cfg.shard is not None and cfg.merge is not None:
        raise UserError("set either shard=NUMBER/COUNT or merge=[FOLDER,FOLDER,...]")
    source = Path(cfg.input).expanduser().absolute()
    output = output_of(cfg, source.with_name(f"eval_{name_of_input(source)}"))
    if cfg.shard is not None:
        return evaluate_shard(cfg, samples_file(source), output)
    source = samples_file(source)
    with new_folder(output, marker="metrics.json", overwrite=cfg.overwrite) as folder:
        crystals = _read_all(cfg, source)
        options = _options(cfg)
        part = None
        if cfg.merge is not None:
            part = read_parts(
                [Path(each).expanduser() for each in cfg.merge],
                _settings_of_parts(crystals, options),
            )
        try:
            metrics, verdicts = evaluate_generated(
                *crystals.structures(),
                scale_reference=None if crystals.scale is None else _structures(crystals.scale),
                cutoffs=CoverageCutoffs(**cfg.cutoffs),
                seed=cfg.seed,
                part=part,
                num_workers=cfg.num_workers,
                progress=True,
                **options,
            )
        except ImportError as error:
            raise UserError(str(error)) from error
        metrics |= {"num_skipped": len(crystals.skipped), "input": str(source), **crystals.places}
        write_json(folder / "metrics.json", metrics)
        rows = _rows(crystals.items, verdicts, crystals.known)
        rows.to_csv(folder / "per_crystal.csv", index=False)
        pd.DataFrame(crystals.skipped, columns=["file", "reason"]).to_csv(
            folder / "skipped.csv", index=False
        )
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
                num_workers=cfg.num_workers,
                progress=True,
                **options,
            )
        except ImportError as error:
            raise UserError(str(error)) from error
        write_part(folder, part, number, count, settings)
    log.info("Part %s is in %s; merge=[...] joins all parts", shard, output)
    return settings


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


def _options(cfg: DictConfig) -> dict[str, Any]:
    """What the results of a part depend on besides the crystals."""
    return {
        "settings": MatcherSettings(**cfg.tolerances),
        "matcher": cfg.matcher,
        "match_timeout": cfg.match_timeout,
        "fingerprint_timeout": cfg.fingerprint_timeout,
        "fingerprints": cfg.fingerprints,
        "prototypes": cfg.prototypes,
    }


def _settings_of_parts(crystals: _Crystals, options: dict[str, Any]) -> dict[str, Any]:
    """As JSON has them, with checksums in place of crystals."""
    names = ("input", "reference", "test_reference")
    checksums = {
        name: None if structures is None else checksum(structures)
        for name, structures in zip(names, crystals.structures(), strict=True)
    }
    others = {name: value for name, value in options.items() if name != "settings"}
    return {**checksums, **others, "tolerances": asdict(options["settings"])}


def name_of_input(source: Path) -> str:
    """The name of a folder, or of a file without its suffixes, for results."""
    return source.name if source.is_dir() else source.name.partition(".")[0]


def samples_file(source: Path) -> Path:
    """The `samples.extxyz` of a folder that a sampling command wrote, or the path itself.

    Such a folder holds the same crystals as CIFs. Other files in it are ignored with a warning.
    """
    samples = source / "samples.extxyz"
    if not samples.is_file():
        return source
    others = {path.name for path in source.iterdir() if not path.name.startswith(".")}
    if others := others - _SAMPLE_FILES:
        log.warning(
            "In %s, only samples.extxyz is evaluated; ignored: %s. To evaluate "
            "another file, use input=FILE",
            source, ", ".join(sorted(others)),
        )  # fmt: skip
    return samples


@dataclass(frozen=True, slots=True)
class Reference:
    """The location of a set of reference crystals.

    Attributes:
        path: the file or folder with the crystals.
        split_file: the `splits.csv` that selects some of these crystals; None for all of them.
        split: which split to select, as named in that file.
    """

    path: Path
    split_file: Path | None = None
    split: str | None = None

    def __str__(self) -> str:
        selection = f" ({self.split} of {self.split_file})" if self.split_file else ""
        return f"{self.path}{selection}"

    def crystals(
        self, read: Callable[[Path], tuple[list[NamedStructure], list[Skipped]]]
    ) -> list[NamedStructure]:
        """Read the crystals.

        Args:
            read: `read_crystals`, or a cached version of it.

        Raises:
            DataError: if there are no crystals, if they cannot be read, or if they do not match
                `split_file`.
        """
        items, _ = read(self.path)
        if self.split_file is None:
            return items
        keys = [(item.id, item.source.as_posix()) for item in items]
        splits = look_up_splits(self.split_file, keys)
        if num_unlisted := splits.count(None):
            log.warning(
                "%d of %d crystals in %s are not listed in %s and are left out",
                num_unlisted, len(items), self.path, self.split_file,
            )  # fmt: skip
        kept = [item for item, split in zip(items, splits, strict=True) if split == self.split]
        if not kept:
            raise DataError(
                f"{self.split_file} lists no crystal of {self.path} in the split {self.split!r}: "
                "choose another split"
            )
        return kept


def find_reference(
    path: str | Path,
    split: str | None,
    option: str | None = None,
    split_file: str | Path | None = None,
) -> Reference:
    """Find the crystals of a split, in the same way as training does.

    Args:
        path: a folder with splits (see `src.data.split_files.find_splits`), a folder of crystals,
            which may contain a `splits.csv`, or a file. If there are no splits, all crystals are
            used.
        split: the name of the split; None for all crystals.
        option: the config option that gave the split, for messages.
        split_file: the `splits.csv` for crystals that do not come with splits.

    Raises:
        DataError: if there are splits but not this one, if several files could be this split, or if
            splits in a subfolder or archive would be pooled.
    """
    path = Path(path).expanduser()
    if split is None:
        return Reference(path)
    if (found := find_split(path, str(split), option, with_folders=split_file is None)) is not None:
        if split_file is not None:
            raise DataError(
                f"{path} already contains splits, such as {found.name}: leave out split_file, or "
                "give the path of the file or folder that it belongs to"
            )
        return Reference(found)
    splits_csv = Path(split_file).expanduser() if split_file else find_splits_csv(path)
    if splits_csv is not None:
        return Reference(path, splits_csv, SPLIT_NAMES[str(split).lower()])
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".zip"):
        if inner_folders := folders_with_splits(StructureReader(path).sources):
            inner = path if inner_folders[0] == "." else path / inner_folders[0]
            use_all = f", or use all crystals with {option}=null" if option else ""
            raise DataError(
                f"Reading {path} would pool the splits in {inner}: give the path of that folder "
                f"(unpack it first if it is in an archive) or of a file in it{use_all}"
            )
        log.warning(
            "%s contains no splits: all its crystals are used, so any test crystals among them "
            "count as known",
            path,
        )
    return Reference(path)


def read_crystals(path: Path) -> tuple[list[NamedStructure], list[Skipped]]:
    """Read the crystals in a file or folder.

    Args:
        path: any path that `src.data.structures.iter_structures` reads.

    Returns:
        The crystals, and the entries that could not be read, which are also logged.

    Raises:
        DataError: if the path does not exist, or no crystal in it can be read.
    """
    items: list[NamedStructure] = []
    skipped: list[Skipped] = []
    for item in track(iter_structures(path), f"Reading {path}", total=None, transient=True):
        if isinstance(item, Skipped):
            skipped.append(item)
        else:
            items.append(item)
    for where, reason in skipped[:_MAX_LOGGED]:
        log.warning("Skipped %s: %s", where, reason)
    if len(skipped) > _MAX_LOGGED:
        log.warning("... %d entries of %s skipped in total", len(skipped), path)
    if not items:
        raise DataError(f"{path} contains no crystal that can be read ({len(skipped)} skipped)")
    return items, skipped


def metrics_table(metrics: dict[str, Any]) -> Table:
    """A table of the metrics for the terminal."""
    table = Table(
        title=f"{metrics['num_generated']:,} generated crystals",
        caption=f"novel: matches none of the {metrics['num_reference']:,} crystals in "
        f"{metrics['reference']}; coverage and distances: compared with "
        f"{metrics['num_test_reference']:,} crystals in {metrics['test_reference']}, of which the "
        f"last column has the same figures, and distances of {metrics['floor_size']:,} crystals of "
        "the former from them; ±: 95 % interval of a bootstrap over crystals",
    )
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("real crystals", justify="right")
    tolerances, cutoffs = metrics["tolerances"], metrics["cutoffs"]
    settings = (
        f"matcher: {metrics['matcher']}, stol {tolerances['stol']}, ltol {tolerances['ltol']}, "
        f"angle {tolerances['angle_tol']}°"
    )
    cutoffs_used = f"structure {cutoffs['structure']}, composition {cutoffs['composition']}"
    rows = [
        ("valid structure (0.5 Å, 0.1 Å^3)", "valid_structure", "%"),
        ("  atoms closer than 0.7 times their covalent radii", "too_close", "%"),
        ("  an isolated atom, none within 1.5 times the radii", "isolated", "%"),
        ("  density outside that of the test reference", "density_outside", "%"),
        ("  volume per atom outside that", "volume_per_atom_outside", "%"),
        ("valid composition (SMACT, CDVAE's options)", "valid_composition", "%"),
        (f"  by the defaults of smact {metrics['smact_version']}", "valid_composition_smact", "%"),
        ("valid structure and composition", "valid", "%"),
        (f"unique, among valid structures ({settings})", "unique", "%"),
        ("  groups of matching crystals, in any order", "unique_groups", "%"),
        ("novel, among valid structures", "novel", "%"),
        ("  of a new composition", "novel_composition", "%"),
        ("  of a known composition, with a new structure", "novel_structure", "%"),
        ("  of a new prototype, whatever the elements", "novel_prototype", "%"),
        ("unique and novel, among valid structures", "unique_and_novel", "%"),
        ("valid, unique and novel, among all", "valid_unique_and_novel", "%"),
        (f"coverage, recall (cutoffs: {cutoffs_used})", "cov_recall", "%"),
        ("coverage, precision", "cov_precision", "%"),
        ("Wasserstein distance of density", "wdist_density", " g/cm^3"),
        ("  of the number of elements", "wdist_num_elements", ""),
        ("  of the number of atoms", "wdist_num_atoms", ""),
        ("  of the volume per atom", "wdist_volume_per_atom", " Å^3"),
        ("  of the lengths of the Niggli cell", "wdist_lengths", " Å"),
        ("  of its angles", "wdist_angles", "°"),
        ("total variation distance of space groups", "tvd_space_groups", ""),
        ("  of elements", "tvd_elements", ""),
        ("AMD distance to the nearest reference crystal", "amd_precision", " Å"),
        ("AMD distance from reference crystals to the nearest crystal", "amd_recall", " Å"),
        ("AMD distance between crystals", "amd_diversity", " Å"),
        ("pairs without a result, counted as no match", "match_timeouts", "n"),
        ("crystals without a fingerprint, counted as invalid", "fingerprint_failures", "n"),
        ("unreadable entries in the input, not counted", "num_skipped", "n"),
    ]
    real = metrics | {f"{key}_reference": value for key, value in (metrics["floor"] or {}).items()}
    for name, key, unit in rows:
        table.add_row(name, _format(metrics, key, unit), _format(real, f"{key}_reference", unit))
    return table


def _format(metrics: dict[str, Any], key: str, unit: str) -> str:
    """A figure; nothing if there is none of that name."""
    if key not in metrics:
        return ""
    if unit in ("%", ""):
        return figure_text(metrics, key, unit == "%")
    value = metrics[key]
    if value is None:
        return "none"
    return f"{value:,}" if unit == "n" else f"{value:.4f}{unit}"


def figure_text(metrics: dict[str, Any], name: str, is_share: bool) -> str:
    """A figure with half the width of its interval, if it has one: `61.39 ± 1.00 %`."""
    value, half = metrics[name], half_width(metrics.get(interval_name(name)))
    if value is None:
        return "none"
    factor, digits, unit = (100, 2, " %") if is_share else (1, 4, "")
    spread = "" if half is None else f" ± {factor * half:.{digits}f}"
    return f"{factor * value:.{digits}f}{spread}{unit}"


def _rows(
    items: Sequence[NamedStructure],
    verdicts: Sequence[Verdict],
    reference: Sequence[NamedStructure],
) -> pd.DataFrame:
    """The content of `per_crystal.csv`."""
    rows = []
    for item, verdict in zip(items, verdicts, strict=True):
        is_compared = verdict.valid_structure
        duplicate_of, known_as = verdict.duplicate_of, verdict.known_as
        rows.append(
            {
                "id": item.id,
                "formula": reduced_formula(item.structure.composition),
                "num_atoms": len(item.structure),
                "valid_structure": verdict.valid_structure,
                "valid_composition": verdict.valid_composition,
                "unique": verdict.unique if is_compared else None,
                "duplicate_of": None if duplicate_of is None else items[duplicate_of].id,
                "novel": verdict.novel if is_compared else None,
                "known_as": None if known_as is None else reference[known_as].id,
                "known_composition": verdict.known_composition,
                "known_prototype": verdict.known_prototype,
                "reason": verdict.reason,
            }
        )
    return pd.DataFrame(rows)


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
