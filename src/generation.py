"""Files of generated crystals, evaluated beside files of real ones."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig
from pymatgen.core import Structure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from src.data.readers import DataError
from src.data.structures import NamedStructure, Skipped, iter_structures
from src.metrics.generation import CoverageCutoffs, Verdict, evaluate_generated
from src.metrics.matching import MatcherSettings
from src.utils.formulas import reduced_formula
from src.utils.output import new_folder
from src.utils.strict_json import write_json

log = logging.getLogger(__name__)

_TABLES = (".csv.gz", ".csv")
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
        source = samples  # of sample_vae, which writes each crystal as a CIF as well
    with new_folder(output_dir, marker="metrics.json", overwrite=cfg.overwrite) as folder:
        items, skipped = read_crystals(source)
        reference_path = find_split(cfg.reference, cfg.reference_split)
        reference, _ = read_crystals(reference_path)
        test_path = find_split(cfg.test_reference or cfg.reference, cfg.test_reference_split)
        if cfg.test_reference is None and test_path.is_dir():
            test_path = reference_path  # there is no other split
        test = reference if test_path == reference_path else read_crystals(test_path)[0]
        scale = None
        if cfg.scale_reference is not None:
            scale, _ = read_crystals(find_split(cfg.scale_reference, "train"))
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
            "reference": str(reference_path),
            "test_reference": str(test_path),
            "scale_reference": str(cfg.scale_reference or test_path),
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


def find_split(path: str | Path, split: str) -> Path:
    """The table of `split` in a folder that has one (`.csv.gz`, `.csv`), else `path` itself."""
    path = Path(path).expanduser()
    tables = (path / f"{split}{suffix}" for suffix in _TABLES)
    return next((table for table in tables if table.is_file()), path)


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
