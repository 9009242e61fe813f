"""Energy, forces and stress of one crystal, and its relaxation, by any ASE calculator."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE

from src.data.crystal import Crystal, CrystalError
from src.data.structures.convert import to_atoms, to_crystal, to_structure
from src.metrics.generation.validity import invalid_reason
from src.metrics.structure_matching.calls import match
from src.metrics.structure_matching.settings import PYMATGEN, UnreducedSettings

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

# A cell that is a multiple of a primitive one after relaxing may not be one before.
SAME_CRYSTAL = UnreducedSettings(**asdict(PYMATGEN))

VOLUME_RANGE = (0.2, 5.0)  # a relaxation that changes the volume by more than this has run away


@dataclass(frozen=True, slots=True)
class Relaxation:
    """When a relaxation ends.

    Attributes:
        fmax: largest force at which it has converged, eV/Å. The same limit holds for the forces on
            the cell, as ASE's `FrechetCellFilter` defines them.
        max_steps: number of steps after which it ends in any case.
    """

    fmax: float = 0.05
    max_steps: int = 200


def single_point(crystal: Crystal, calculator: Calculator) -> dict[str, Any]:
    """Energy, largest force and stress of a crystal as it is.

    Returns:
        `energy` (eV/atom), `force` (the largest on an atom, eV/Å), `stress` (xx, yy, zz, yz, xz,
        xy, GPa; None if the calculator gives none).

    Raises:
        CrystalError: if the geometry is invalid, or a result is not a finite number.
    """
    return _results(_prepare(crystal, calculator))


def relax(
    crystal: Crystal,
    calculator: Calculator,
    settings: Relaxation | None = None,
    time_limit: float = math.inf,
) -> dict[str, Any]:
    """Relax the positions and the cell of a crystal, by FIRE.

    Args:
        crystal: the crystal to start from.
        calculator: must give stresses.
        settings: when to stop; None for the defaults.
        time_limit: seconds; looked at between steps.

    Returns:
        The results of `single_point` for the relaxed crystal, and: `crystal` (`lattice`,
        `atom_types` and `frac_coords` as lists), `steps`, `converged`, `volume_change` (relative),
        `matches` (whether it matches the crystal that it comes from, with pymatgen's tolerances but
        without reduction to primitive cells),
        `rms` (of the match, in units of (V/N)^(1/3)) and `rmsd` (the same in Å, with the mean
        volume per atom of both); None if they do not match.

    Raises:
        CrystalError: as `single_point`, or if the crystal collapses or evaporates.
        TimeoutError: if it takes longer than the limit.
    """
    settings = settings or Relaxation()
    start = time.monotonic()
    atoms = _prepare(crystal, calculator)
    volume = atoms.get_volume()
    optimizer = FIRE(FrechetCellFilter(atoms), logfile=None)
    converged = False
    for ended in optimizer.irun(fmax=settings.fmax, steps=settings.max_steps):
        converged = bool(ended)
        change = atoms.get_volume() / volume
        if not VOLUME_RANGE[0] <= change <= VOLUME_RANGE[1]:
            raise CrystalError(f"its volume changed {change:.3g}-fold while relaxing")
        if time.monotonic() - start > time_limit:
            raise TimeoutError(f"not relaxed within {time_limit:g} s")
    found = to_crystal(atoms)
    return {
        **_results(atoms),
        "steps": int(optimizer.nsteps),
        "converged": converged,
        **_change(crystal, found),
        "crystal": as_lists(found),
    }


def as_lists(crystal: Crystal) -> dict[str, list]:
    """The arrays of a crystal as lists, for JSON; see `from_lists`."""
    return {
        "lattice": crystal.lattice.tolist(),
        "atom_types": crystal.atom_types.tolist(),
        "frac_coords": crystal.frac_coords.tolist(),
    }


def from_lists(content: dict[str, list]) -> Crystal:
    """The crystal that `as_lists` wrote."""
    return Crystal(
        np.array(content["lattice"], dtype=np.float64),
        np.array(content["atom_types"], dtype=np.int64),
        np.array(content["frac_coords"], dtype=np.float64),
    )


def _prepare(crystal: Crystal, calculator: Calculator) -> Atoms:
    if reason := invalid_reason(crystal):
        raise CrystalError(reason)
    atoms = to_atoms(crystal)
    atoms.calc = calculator
    return atoms


def _results(atoms: Atoms) -> dict[str, Any]:
    energy = float(atoms.get_potential_energy()) / len(atoms)
    force = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
    stress = None
    with contextlib.suppress(PropertyNotImplementedError):
        stress = (np.asarray(atoms.get_stress(), dtype=np.float64) / units.GPa).tolist()
    if not all(map(math.isfinite, (energy, force, *(stress or ())))):
        raise CrystalError("the potential gives a number that is not finite")
    return {"energy": energy, "force": force, "stress": stress}


def _change(before: Crystal, after: Crystal) -> dict[str, Any]:
    first, second = to_structure(before), to_structure(after)
    # not compiled: a worker would wait longer for the compiled code than for a few pairs
    (result,) = match([second], [first], SAME_CRYSTAL, compiled=False, num_workers=0)
    unit = ((first.volume + second.volume) / (2 * len(first))) ** (1 / 3)
    return {
        "volume_change": second.volume / first.volume - 1,
        "matches": result.matched,
        "rms": result.rms,
        "rmsd": None if result.rms is None else result.rms * unit,
    }
