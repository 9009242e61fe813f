"""Write the page of an evaluation of generated crystals, with energies of `eval_stability`."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from src.commands.generated_tables import table_rows
from src.data.structures import NamedStructure
from src.metrics.generation.evaluate import Evaluation
from src.metrics.generation.two_sample import standardized
from src.report.judged import Energies, JudgedSet, LatentMap, write_judged_report
from src.utils.errors import UserError

if TYPE_CHECKING:
    from src.commands.generated_latents import Latents

log = logging.getLogger(__name__)

_COLUMNS = ("e_above_hull_relaxed", "e_above_hull")  # the first that is there is shown


def write_page(
    path: Path,
    evaluation: Evaluation,
    items: Sequence[NamedStructure],
    known: Sequence[NamedStructure],
    test: Sequence[NamedStructure] | None,
    latents: tuple[Latents, Latents] | None,
    energies: Energies | None,
    seed: int,
) -> None:
    """Write the page; see `write_judged_report`.

    Args:
        path: of the new file.
        evaluation: with the metrics of `evaluate_files`.
        items, known, test: the generated crystals, the reference, and the test reference; None
            where it is the reference.
        latents: those drawn of the generated crystals and of the reference; None without encoder.
        energies: from `read_energies`.
        seed: of the choice of crystals.
    """
    shown = None
    if latents is not None:
        generated, reference = latents
        shown = LatentMap(
            standardized(generated.vectors, reference.vectors),
            standardized(reference.vectors, reference.vectors),
            _places(evaluation.judged, generated),
            _places(evaluation.known, reference),
            str(evaluation.metrics["encoder"]),
        )
    judged = JudgedSet(
        items,
        evaluation,
        known,
        known if test is None else test,
        table_rows(evaluation.metrics),
        energies,
        shown,
    )
    write_judged_report(path, judged, seed)


def read_energies(given: Path | None, default: Path, ids: Sequence[str]) -> Energies | None:
    """Read the energies above the hull that `eval_stability` found for crystals.

    Args:
        given: the folder of its results; None for `default`, if that is of the same crystals.
        default: the folder where it writes by default.
        ids: of the crystals, in order.

    Returns:
        None if `given` is None and there is nothing of use in `default`.

    Raises:
        UserError: if there is nothing of use in `given`.
    """
    try:
        return _read_energies(default if given is None else given, ids)
    except UserError as error:
        if given is not None:
            raise
        if default.is_dir():
            log.warning("Energies above the hull are left out of the report: %s", error)
        return None


def _read_energies(folder: Path, ids: Sequence[str]) -> Energies:
    try:
        table = pd.read_csv(folder / "per_crystal.csv", dtype=str, keep_default_na=False)
        metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        potential, noise = metrics["potential"], metrics["noise"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"stability={folder} has no results of eval_stability ({error!r}): name its output"
        ) from error
    if noise is not None:
        raise UserError(f"{folder} is of crystals with noise: judge them as they are")
    column = next((name for name in _COLUMNS if name in table), None)
    if column is None:
        raise UserError(
            f"{folder} has no energies above the hull: run eval_stability with reference=FOLDER"
        )
    found = table["id"].tolist()
    count = min(len(found), len(ids))  # fewer with num_crystals, more with unreadable files
    if differing := [n for n in range(count) if found[n] != ids[n]]:
        n = differing[0]
        raise UserError(
            f"{folder / 'per_crystal.csv'}, row {n + 1} is of {found[n]}, not of {ids[n]}: run "
            "eval_stability on the same input"
        )
    values = [float(text) if text else None for text in table[column][:count]]
    state = "relaxed" if column == _COLUMNS[0] else "as generated"
    return Energies(
        [*values, *[None] * (len(ids) - count)], f"{state}, by {potential}, of {folder.name}"
    )


def _places(indices: Sequence[int], latents: Latents) -> np.ndarray:
    """The indices in the whole set, of latents of some of its crystals."""
    return np.asarray(indices, dtype=int)[latents.indices]
