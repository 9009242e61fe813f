"""Files of generated crystals, evaluated beside files of real ones."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from src.data.split_files import find_split, folders_with_splits, own_splits_csv
from src.data.splits import splits_of
from src.data.structures import NamedStructure, Skipped, StructureReader, iter_structures
from src.metrics.generation.evaluate import CoverageCutoffs, Verdict, evaluate_generated
from src.metrics.matching import MatcherSettings
from src.utils.formulas import reduced_formula
from src.utils.output import new_folder
from src.utils.strict_json import write_json

log = logging.getLogger(__name__)

_OF_SAMPLE_VAE = {"samples.extxyz", "samples.json", "cifs", "cifs.zip"}
_MAX_NAMED = 20  # skipped files on the terminal; skipped.csv has them all


def evaluate_files(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate generated crystals as `configs/eval_generated.yaml` says.

    The folder `cfg.output_dir` (`eval_NAME` beside the input, unless given) has

    - `metrics.json`: what `evaluate_generated` returns, `num_skipped` (entries of the input that
      could not be read, which no share counts), and where everything came from;
    - `per_crystal.csv`: `id`, `formula`, `num_atoms`, `valid_structure`, `valid_composition`,
      `unique`, `duplicate_of` (id of the crystal that it matches), `novel`, `known_as` (id of the
      reference crystal that it matches), `reason`. The four of matching are empty for a crystal
      that is structurally invalid;
    - `skipped.csv`: what could not be read, and why.

    Returns:
        The content of `metrics.json`.

    Raises:
        ValueError: for input, references or an output that cannot be used, or if a package of the
            extra `generation` is not installed.
    """
    source = Path(cfg.input).expanduser().absolute()
    name = source.name if source.is_dir() else source.name.partition(".")[0]
    output_dir = Path(cfg.output_dir or source.with_name(f"eval_{name}"))
    if (samples := source / "samples.extxyz").is_file():
        others = {path.name for path in source.iterdir() if not path.name.startswith(".")}
        if others := others - _OF_SAMPLE_VAE:
            log.warning(
                "Of %s only samples.extxyz is evaluated, and not %s. To evaluate another file, say "
                "input=FILE",
                source, ", ".join(sorted(others)),
            )  # fmt: skip
        source = samples  # of sample_vae, which writes each crystal as a CIF as well
    with new_folder(output_dir, marker="metrics.json", overwrite=cfg.overwrite) as folder:
        items, skipped = read_crystals(source)
        read = cache(read_crystals)  # two splits can be in the same files
        root = Path(cfg.reference).expanduser()
        known = find_reference(root, cfg.reference_split, "reference_split", cfg.split_file)
        reference = known.crystals(read)
        by = (cfg.test_reference_split, "test_reference_split")
        if cfg.test_reference is not None:
            other = find_reference(cfg.test_reference, *by)
        elif cfg.reference_split is not None and known == Reference(root):
            other = known  # there are no splits
        else:
            other = find_reference(root, *by, cfg.split_file)
        test = reference if other == known else other.crystals(read)
        scale = None
        if cfg.scale_reference is not None:
            scale = find_reference(cfg.scale_reference, "train").crystals(read)
        test = _draw(test, cfg.max_test_reference, cfg.seed)
        try:
            metrics, verdicts = evaluate_generated(
                _structures(items),
                _structures(reference),
                None if test is reference else _structures(test),
                scale_reference=None if scale is None else _structures(scale),
                cutoffs=CoverageCutoffs(**cfg.cutoffs),
                settings=MatcherSettings(**cfg.matcher),
                num_workers=cfg.num_workers,
                match_timeout=cfg.match_timeout,
                fingerprint_timeout=cfg.fingerprint_timeout,
                progress=True,
            )
        except ImportError as error:
            raise ValueError(str(error)) from error
        metrics |= {
            "num_skipped": len(skipped),
            "input": str(source),
            "reference": str(known),
            "test_reference": str(other),
            "scale_reference": str(cfg.scale_reference or other),
        }
        write_json(folder / "metrics.json", metrics)
        rows = _rows(items, verdicts, reference)
        rows.to_csv(folder / "per_crystal.csv", index=False)
        pd.DataFrame(skipped, columns=["file", "reason"]).to_csv(
            folder / "skipped.csv", index=False
        )
    Console().print(metrics_table(metrics))
    log.info("The figures are in %s", output_dir)
    return metrics


@dataclass(frozen=True, slots=True)
class Reference:
    """Crystals to compare with.

    Attributes:
        path: the file or folder that they are in.
        split_file: the `splits.csv` that says which of the crystals there they are; None: all.
        split: as that file calls it.
    """

    path: Path
    split_file: Path | None = None
    split: str | None = None

    def __str__(self) -> str:
        by = f" ({self.split} of {self.split_file})" if self.split_file else ""
        return f"{self.path}{by}"

    def crystals(
        self, read: Callable[[Path], tuple[list[NamedStructure], list[Skipped]]]
    ) -> list[NamedStructure]:
        """Those crystals.

        Args:
            read: `read_crystals`, or what remembers its results.

        Raises:
            DataError: if there are none, or they cannot be read, or are others than `split_file`
                names.
        """
        items, _ = read(self.path)
        if self.split_file is None:
            return items
        keys = [(item.id, item.source.as_posix()) for item in items]
        splits = splits_of(self.split_file, keys)
        if num_left_out := splits.count(None):
            log.warning(
                "%d of %d crystals in %s are in no split of %s, and left out",
                num_left_out, len(items), self.path, self.split_file,
            )  # fmt: skip
        kept = [item for item, split in zip(items, splits, strict=True) if split == self.split]
        if not kept:
            raise DataError(
                f"{self.split_file} puts no crystal of {self.path} into {self.split!r}: choose "
                "another split"
            )
        return kept


def find_reference(
    path: str | Path,
    split: str | None,
    option: str | None = None,
    split_file: str | Path | None = None,
) -> Reference:
    """The crystals of a split, found as training finds them.

    Args:
        path: a file; or a folder with splits, as `src.data.split_files.find_splits` finds them; or
            a folder of loose crystals, maybe with a `splits.csv`. A folder with none of those, a
            file and an archive are taken whole.
        split: which; None for all crystals there.
        option: that says which split, for messages.
        split_file: the `splits.csv` of crystals that are in no split by their files.

    Raises:
        DataError: if there are splits but not this one; if two files could be it; if splits lie
            deeper in a folder, or in an archive, where they would be mixed.
    """
    path = Path(path).expanduser()
    if split is None:
        return Reference(path)
    if (found := find_split(path, str(split), option, with_folders=split_file is None)) is not None:
        if split_file is not None:
            raise DataError(
                f"{path} holds splits already, as {found.name}: leave split_file out, or name the "
                "file or folder that it is for"
            )
        return Reference(found)
    by = Path(split_file).expanduser() if split_file else own_splits_csv(path)
    if by is not None:
        return Reference(path, by, SPLIT_NAMES[str(split).lower()])
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".zip"):
        if mixed := folders_with_splits(StructureReader(path).sources):
            inner = path if mixed[0] == "." else path / mixed[0]
            take_all = f", or take all crystals with {option}=null" if option else ""
            raise DataError(
                f"{path} would mix the splits that {inner} holds: name that folder, unpacked if it "
                f"is in an archive, or a file in it{take_all}"
            )
        log.warning(
            "%s holds no splits: all its crystals are taken, so that any test crystals among them "
            "count as known",
            path,
        )
    return Reference(path)


def read_crystals(path: Path) -> tuple[list[NamedStructure], list[Skipped]]:
    """The crystals of a file or folder, and what could not be read, which the log names too.

    Args:
        path: whatever `src.data.structures.iter_structures` reads.

    Raises:
        DataError: if there is no such path, or no crystal in it.
    """
    items: list[NamedStructure] = []
    skipped: list[Skipped] = []
    for item in track(iter_structures(path), f"Reading {path}", total=None, transient=True):
        if isinstance(item, Skipped):
            skipped.append(item)
        else:
            items.append(item)
    for where, reason in skipped[:_MAX_NAMED]:
        log.warning("Skipped %s: %s", where, reason)
    if len(skipped) > _MAX_NAMED:
        log.warning("... %d skipped in all of %s", len(skipped), path)
    if not items:
        raise DataError(f"{path} holds no crystal that can be read ({len(skipped)} skipped)")
    return items, skipped


def metrics_table(metrics: dict[str, Any]) -> Table:
    """The figures for the terminal."""
    table = Table(
        title=f"{metrics['num_generated']:,} generated crystals",
        caption=f"novel: not among {metrics['num_reference']:,} crystals of "
        f"{metrics['reference']}; coverage and distances: beside "
        f"{metrics['num_test_reference']:,} of {metrics['test_reference']}",
    )
    table.add_column("figure")
    table.add_column("value", justify="right")
    matcher, cutoffs = metrics["matcher"], metrics["cutoffs"]
    settings = f"stol {matcher['stol']}, ltol {matcher['ltol']}, angle {matcher['angle_tol']}°"
    near = f"structure {cutoffs['structure']}, composition {cutoffs['composition']}"
    rows = [
        ("valid structure (0.5 Å, 0.1 Å^3)", "valid_structure", "%"),
        ("valid composition (SMACT)", "valid_composition", "%"),
        ("both", "valid", "%"),
        (f"unique, of valid structures ({settings})", "unique", "%"),
        ("novel, of valid structures", "novel", "%"),
        ("unique and novel, of valid structures", "unique_and_novel", "%"),
        ("valid, unique and novel, of all", "valid_unique_and_novel", "%"),
        (f"coverage, recall ({near})", "cov_recall", "%"),
        ("coverage, precision", "cov_precision", "%"),
        ("Wasserstein distance of density", "wdist_density", " g/cm^3"),
        ("Wasserstein distance of number of elements", "wdist_num_elements", ""),
        ("Wasserstein distance of number of atoms", "wdist_num_atoms", ""),
        ("AMD to the nearest reference crystal", "amd_precision", " Å"),
        ("AMD of the reference to the nearest crystal", "amd_recall", " Å"),
        ("AMD between crystals", "amd_diversity", " Å"),
        ("AMD between reference crystals", "amd_diversity_reference", " Å"),
        ("pairs without an answer, taken for no match", "match_timeouts", "n"),
        ("crystals without a fingerprint, counted as invalid", "fingerprint_failures", "n"),
        ("entries of the input that could not be read, not counted", "num_skipped", "n"),
    ]
    for name, key, unit in rows:
        table.add_row(name, _format(metrics[key], unit))
    return table


def _format(value: float | None, unit: str) -> str:
    if value is None:
        return "none"
    if unit == "n":
        return f"{value:,}"
    return f"{100 * value:.2f} %" if unit == "%" else f"{value:.4f}{unit}"


def _rows(
    items: Sequence[NamedStructure],
    verdicts: Sequence[Verdict],
    reference: Sequence[NamedStructure],
) -> pd.DataFrame:
    rows = []
    for item, verdict in zip(items, verdicts, strict=True):
        judged = verdict.valid_structure
        duplicate_of, known_as = verdict.duplicate_of, verdict.known_as
        rows.append(
            {
                "id": item.id,
                "formula": reduced_formula(item.structure.composition),
                "num_atoms": len(item.structure),
                "valid_structure": verdict.valid_structure,
                "valid_composition": verdict.valid_composition,
                "unique": verdict.unique if judged else None,
                "duplicate_of": None if duplicate_of is None else items[duplicate_of].id,
                "novel": verdict.novel if judged else None,
                "known_as": None if known_as is None else reference[known_as].id,
                "reason": verdict.reason,
            }
        )
    return pd.DataFrame(rows)


def _structures(items: Sequence[NamedStructure]) -> list[Structure]:
    return [item.structure for item in items]


def _draw(items: list[NamedStructure], size: int | None, seed: int) -> list[NamedStructure]:
    """A random part of them, in their order."""
    if size is None or size >= len(items):
        return items
    drawn = np.random.default_rng(seed).choice(len(items), size, replace=False)
    return [items[i] for i in sorted(drawn)]
