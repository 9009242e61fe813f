"""Energies of reference crystals by a potential, kept on disk by content."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from src.data.crystal import Crystal
from src.metrics.generation.stability.energies import Relaxation
from src.metrics.generation.stability.potentials import Potential
from src.metrics.generation.stability.workers import Job, judge
from src.utils.strict_json import json_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EnergyCache:
    """Energies on disk, one file for each potential, version and kind of relaxation.

    Several processes may use it at the same time. A line that cannot be read is ignored, and its
    crystal is computed again.

    Attributes:
        folder: is created if needed.
        potential: that computes the energies.
        relaxation: None for the energies of crystals as given.
    """

    folder: Path
    potential: Potential
    relaxation: Relaxation | None = None

    @property
    def path(self) -> Path:
        state = "as_given"
        if self.relaxation is not None:
            state = f"relaxed_{self.relaxation.fmax:g}_{self.relaxation.max_steps}"
        # the name alone may stand for several versions, and for calculators of several modules
        which = f"{self.potential.name} {self.potential.version}"
        digest = hashlib.sha256(which.encode()).hexdigest()[:12]
        return self.folder / f"{self.potential.label}_{digest}_{state}.jsonl"

    def read(self) -> dict[str, float | str]:
        """The energy (eV/atom), or the reason why there is none, by the crystal's `checksum`."""
        found: dict[str, float | str] = {}
        if not self.path.is_file():
            return found
        with self.path.open("rb") as file:
            for line in file:
                try:
                    row = json.loads(line)
                    found[row["sha256"]] = row["failed"] if "failed" in row else row["energy"]
                except (ValueError, KeyError, TypeError):
                    continue
        return found

    def add(self, row: dict[str, Any]) -> None:
        """Append a row at once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        line = json_text(row, indent=None).encode() + b"\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line)  # whole, so that lines of two processes do not mix
        finally:
            os.close(file)


def checksum(crystal: Crystal) -> str:
    """SHA-256 of the elements, cell and coordinates of a crystal, rounded to 1e-8."""
    digest = hashlib.sha256()
    digest.update(np.ascontiguousarray(crystal.atom_types, dtype="<i8").tobytes())
    for array in (crystal.lattice, crystal.frac_coords):
        rounded = np.round(array, 8) + 0.0  # without -0.0
        digest.update(np.ascontiguousarray(rounded, dtype="<f8").tobytes())
    return digest.hexdigest()


def energies_of(
    crystals: Sequence[Crystal],
    cache: EnergyCache,
    num_workers: int | None = None,
    time_limit: float = 600.0,
    kind: str = "reference crystals",
) -> list[float | str]:
    """The energies of crystals, from the cache where they are in it.

    What is computed is added to the cache at once, so that a run that was ended goes on where it
    was.

    Args:
        crystals: in the cells of their files.
        cache: where energies are kept.
        num_workers, time_limit: see `judge`.
        kind: what the crystals are, for messages.

    Returns:
        For each crystal, its energy (eV/atom) or the reason why there is none.
    """
    keys = [checksum(crystal) for crystal in crystals]
    known = cache.read()
    missing = {key: i for i, key in enumerate(keys) if key not in known}
    if missing:
        num_known = f"{len(keys) - len(missing):,}"
        logger.info(
            "%s %s: %s energies are in %s, %s are computed",
            f"{len(keys):,}", kind, num_known, cache.path, f"{len(missing):,}",
        )  # fmt: skip
    names = list(missing)
    jobs = [Job(crystals[missing[name]], cache.relaxation) for name in names]
    results = judge(jobs, cache.potential.name, num_workers, time_limit)
    for index, result in track(results, kind, total=len(jobs), transient=True):
        row: dict[str, Any] = {"sha256": names[index]}
        if "failed" in result:
            row["failed"] = known[names[index]] = result["failed"]
        else:
            row["energy"] = known[names[index]] = result["energy"]
        if not {"time_limit", "crashed"} & result.keys():  # which may go better another time
            cache.add(row)
    return [known[key] for key in keys]
