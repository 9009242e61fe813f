"""Judge how stable generated crystals are, by an interatomic potential."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from omegaconf import DictConfig
from pymatgen.core import Composition
from rich.progress import Progress

from src.commands.references import name_of_input, read_crystals
from src.commands.stability_figures import (
    METRICS,
    PER_CRYSTAL,
    RELAXED,
    check_sources,
    write_figures,
)
from src.data.crystal import Crystal, wrap_coords
from src.data.structures import to_crystal
from src.data.symmetrize import symmetrize_crystal
from src.metrics.generation.stability.energies import Relaxation
from src.metrics.generation.stability.potentials import find_potential
from src.metrics.generation.stability.reference import checksum
from src.metrics.generation.stability.results import (
    RESULTS,
    SETTINGS,
    STATES,
    Results,
    Row,
    State,
    appending,
    check_settings,
    merge_results,
    read_results,
)
from src.metrics.generation.stability.workers import Job, judge
from src.utils.errors import UserError
from src.utils.formulas import full_formula
from src.utils.lock import lock_folder
from src.utils.output import OutputError
from src.utils.shards import shard_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Given:
    """A crystal to judge, or a place where one should be.

    Attributes:
        id: of the crystal.
        crystal: None if it cannot be read.
        reason: why not.
    """

    id: str
    crystal: Crystal | None
    reason: str = ""


def evaluate_stability(cfg: DictConfig) -> dict[str, Any]:
    """Judge crystals as configured in `configs/eval_stability.yaml`.

    The results are in the folder `cfg.output` (by default `stability_NAME` next to the input; with
    a shard, its number is appended). A later call with the same input and settings goes on where
    the results end, or adds what is new: the relaxation, or figures of stability.

    - `results.jsonl`: a line for each crystal as generated and, if it was relaxed, another one. See
      `single_point` and `relax` for what they have. `settings.json`: what was judged, and how.
    - `metrics.json`: the figures; see `src.metrics.generation.stability.figures`.
    - `per_crystal.csv`: `id`, `formula`, `num_atoms`, `energy`, `force`, `energy_relaxed`,
      `converged`, `matches`, `rmsd`, `volume_change`, `e_above_hull`, `e_above_hull_relaxed`,
      `reason`.
    - `relaxed.extxyz`: the relaxed crystals.

    Entries of the input that cannot be read, and samples that could not be written to it, count as
    crystals that failed.

    Returns:
        The content of `metrics.json`.

    Raises:
        UserError: if the input, a reference, the potential or the output cannot be used.
    """
    _check_options(cfg)
    potential = find_potential(cfg.potential)
    if cfg.merge:
        output = Path(cfg.output).expanduser()
        with _results_folder(output, cfg.overwrite) as folder:
            merge_results([Path(each).expanduser() for each in cfg.merge], folder)
            return write_figures(cfg, folder, potential)
    source = Path(cfg.input).expanduser().absolute()
    given, num_readable = read_given(source)
    given = given[: cfg.num_crystals]
    if cfg.noise is not None:
        given = [_with_noise(each, cfg.noise, cfg.seed, i) for i, each in enumerate(given)]
    indices, shard = shard_of(cfg.shard, len(given))
    output = _output_of(cfg, source, shard)
    relaxation = Relaxation(cfg.fmax, cfg.max_steps) if cfg.relax else None
    settings = {
        "input_sha256": _checksum(given),
        "num_crystals": len(given),
        "num_readable": min(num_readable, len(given)),
        "shard": shard,
        "potential": potential.name,
        "potential_version": potential.version,
        "symmetrize": cfg.symmetrize,
        "noise": None if cfg.noise is None else {"size": cfg.noise, "seed": cfg.seed},
        "relaxation": None if relaxation is None else asdict(relaxation),
    }
    with _results_folder(output, cfg.overwrite) as folder:
        check_settings(folder, settings)
        _judge_missing(cfg, folder, given, indices, relaxation)
        return write_figures(cfg, folder, potential)


def _check_options(cfg: DictConfig) -> None:
    if (cfg.input is None) == (not cfg.merge):
        raise UserError("set either input=FOLDER_OR_FILE or merge=[FOLDER,FOLDER,...]")
    check_sources(cfg)
    if cfg.merge and cfg.output is None:
        raise UserError("merge needs output=FOLDER, where the joined results are written")
    for name in ("noise", "symmetrize", "num_crystals", "fmax", "max_steps", "time_limit"):
        if cfg[name] is not None and not cfg[name] > 0:
            raise UserError(f"{name} must be positive, not {cfg[name]}")
    if cfg.num_workers is not None and cfg.num_workers < 0:
        raise UserError(f"num_workers must be at least 0, not {cfg.num_workers}")


def read_given(source: Path) -> tuple[list[Given], int]:
    """Read the crystals to judge.

    Args:
        source: a file or folder; of a folder of samples, `samples.extxyz` is read, and
            `samples.json` says which samples could not be written to it.

    Returns:
        The crystals that can be read, then those that cannot; and the number of the former.

    Raises:
        DataError: if there is nothing to read.
    """
    unwritten: list[Given] = []
    if (samples := source / "samples.extxyz").is_file():
        unwritten = _unwritten(source / "samples.json")
        source = samples
    items, skipped = read_crystals(source)
    given = [Given(item.id, to_crystal(item.structure)) for item in items]
    unreadable = [Given(where, None, f"cannot be read: {reason}") for where, reason in skipped]
    return [*given, *unreadable, *unwritten], len(given)


def _judge_missing(
    cfg: DictConfig,
    folder: Path,
    given: Sequence[Given],
    indices: Sequence[int],
    relaxation: Relaxation | None,
) -> None:
    """Judge the crystals that have no result yet, first as generated, then relaxed."""
    known = read_results(folder)
    with appending(folder) as append, Progress(transient=True) as bar:

        def keep(row: Row) -> None:
            append(row)
            known[row["state"], row["index"]] = row

        for state in STATES if relaxation is not None else STATES[:1]:
            rows: list[Row] = []
            jobs: list[Job] = []
            for index in indices:
                if _is_done(known, state, index, cfg.time_limit):
                    continue
                row, crystal = _begin(index, state, given[index], cfg.symmetrize)
                if crystal is None:
                    keep(row)
                else:
                    rows.append(row)
                    jobs.append(Job(crystal, relaxation if state == "relaxed" else None))
            done = len(indices) - len(jobs)
            task = bar.add_task(state.replace("_", " "), total=len(indices), completed=done)
            for place, result in judge(jobs, cfg.potential, cfg.num_workers, cfg.time_limit):
                keep({**rows[place], **result})
                bar.advance(task)


def _is_done(known: Results, state: State, index: int, time_limit: float) -> bool:
    """Whether there is a result that a new attempt would not change."""
    if state == "relaxed" and "failed" in known["as_generated", index]:
        return True  # it would fail again
    row = known.get((state, index))
    if row is None or "crashed" in row:
        return False
    return row.get("time_limit", math.inf) >= time_limit


def _begin(
    index: int, state: State, given: Given, tolerance: float | None
) -> tuple[Row, Crystal | None]:
    """What a row says before the crystal is judged, and the crystal; None if that failed."""
    row: Row = {"index": index, "state": state, "id": given.id, "formula": None, "num_atoms": None}
    if given.crystal is None:
        return {**row, "failed": given.reason}, None
    composition = Composition.from_dict(_counts(given.crystal))
    row |= {"formula": full_formula(composition), "num_atoms": given.crystal.num_atoms}
    if tolerance is None:
        return row, given.crystal
    found = symmetrize_crystal(given.crystal, tolerance)
    names = ("before", "after", "displacement", "gained")
    return {**row, "symmetrized": {name: getattr(found, name) for name in names}}, found.crystal


def _counts(crystal: Crystal) -> dict[str, int]:
    numbers, counts = np.unique(crystal.atom_types, return_counts=True)
    return {chemical_symbols[z]: int(n) for z, n in zip(numbers, counts, strict=True)}


def _unwritten(path: Path) -> list[Given]:
    """The samples that could not be written to a file, by `samples.json`."""
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["samples"]
        return [
            Given(row["id"], None, f"could not be written: {row['reason']}")
            for row in rows
            if not row["written"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): give input=samples.extxyz") from error


def _with_noise(given: Given, size: float, seed: int, index: int) -> Given:
    """The crystal with each atom displaced; depends on the seed and the index only."""
    if given.crystal is None:
        return given
    crystal = given.crystal
    shifts = np.random.default_rng((seed, index)).normal(0, size, crystal.frac_coords.shape)
    coords = crystal.frac_coords + shifts @ np.linalg.inv(crystal.lattice)
    return Given(given.id, Crystal(crystal.lattice, crystal.atom_types, wrap_coords(coords)))


def _checksum(given: Sequence[Given]) -> str:
    """Of IDs and contents of crystals, whatever the format of their file."""
    digest = hashlib.sha256()
    for each in given:
        content = each.reason if each.crystal is None else checksum(each.crystal)
        digest.update(f"{each.id}\n{content}\n".encode())
    return digest.hexdigest()


def _output_of(cfg: DictConfig, source: Path, shard: str | None) -> Path:
    default = source.with_name(f"stability_{name_of_input(source)}")
    output = Path(cfg.output).expanduser() if cfg.output is not None else default
    return output.with_name(f"{output.name}_{shard.replace('/', '_of_')}") if shard else output


@contextmanager
def _results_folder(output: Path, overwrite: bool) -> Iterator[Path]:
    """Provide the folder of results, which other runs cannot use at the same time."""
    output = output.absolute()
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file: choose another output")
    with lock_folder(output, option="output"):
        if overwrite and (output / SETTINGS).is_file():
            for name in (RESULTS, METRICS, PER_CRYSTAL, RELAXED, SETTINGS):
                (output / name).unlink(missing_ok=True)
        yield output
