"""Move the atoms of a crystal, and change its cell, to the symmetry that they nearly have.

Generated crystals have small errors that hide their space group. spglib finds the operations that
hold within a tolerance; positions and metric tensor are then averaged over them. So a crystal stays
where it is: it is not mirrored, rotated, shifted or converted to another cell, as it may be by
spglib's own standardization.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from pymatgen.core import Lattice, Structure

from src.data.cells import symmetry_of
from src.data.crystal import Crystal, CrystalError, wrap_coords
from src.data.structures.convert import to_crystal
from src.utils.errors import UserError

EXACT = 0.01  # Å, tolerance for the space group that a crystal has before anything is moved
_MAX_ROUNDS = 10  # each may reveal more operations; two or three are usual
_SETTLED = 1e-9  # Å, largest displacement that counts as none


@dataclass(frozen=True, slots=True)
class Symmetrized:
    """A crystal before and after `symmetrize_crystal`.

    Attributes:
        crystal: with its atoms in the same order and its cell in the same setting.
        before: number of the space group within `EXACT`, 1 to 230; 1 if spglib finds none.
        after: number of the space group of `crystal`, 1 to 230.
        displacement: largest distance that an atom moved in the averaged cell, Å.
        strain: largest entry of the strain of the cell (dimensionless).
        gained: whether more operations hold than before.
    """

    crystal: Crystal
    before: int
    after: int
    displacement: float
    strain: float
    gained: bool


def symmetrize(structure: Structure, tolerance: float) -> Structure:
    """The structure with exactly the symmetry that it has within a tolerance.

    Species, site properties and the order of the sites are kept. Coordinates are near the given
    ones and need not be inside the cell. See `symmetrize_crystal`.

    Args:
        structure: an ordered crystal.
        tolerance: on distances between symmetric atoms, Å.

    Raises:
        CrystalError: if it is not an ordered crystal.
        UserError: if the tolerance is not positive.
    """
    given = to_crystal(structure)
    found = symmetrize_crystal(given, tolerance).crystal
    offsets = found.frac_coords - structure.frac_coords
    coords = structure.frac_coords + offsets - np.rint(offsets)
    return Structure(
        Lattice(found.lattice),
        structure.species,
        coords,
        site_properties=structure.site_properties,
    )


def symmetrize_crystal(crystal: Crystal, tolerance: float) -> Symmetrized:
    """Average a crystal over the symmetry operations that it has within a tolerance.

    The metric tensor G becomes the mean of W^T G W over the rotations W, and an atom's position the
    mean of those that the operations (W, w) bring other atoms to, less the mean displacement of all
    atoms. The rotation of the new cell is the one closest to the old cell (orthogonal Procrustes
    problem). This is repeated while it reveals more operations, so that the result has no more of
    them within the tolerance and is left alone by a second call. In the end, an atom may have moved
    by more than the tolerance, which concerns pairs of symmetric atoms.

    A crystal without symmetry, or whose atoms overlap within the tolerance, is returned unchanged.

    Args:
        crystal: a crystal in any cell.
        tolerance: Å.

    Raises:
        CrystalError: if the numbers of the crystal are not finite.
        UserError: if the tolerance is not positive.
    """
    if not tolerance > 0:
        raise UserError(f"the tolerance of symmetrize must be positive, in Å, not {tolerance}")
    if not (np.isfinite(crystal.lattice).all() and np.isfinite(crystal.frac_coords).all()):
        raise CrystalError("a number of the crystal is not finite")
    exact = symmetry_of(crystal, min(EXACT, tolerance))
    before = exact.number if exact is not None else 1
    num_before = len(exact.rotations) if exact is not None else 1
    lattice, coords = crystal.lattice, crystal.frac_coords
    after, num_found = before, 0
    for _ in range(_MAX_ROUNDS):
        current = Crystal(lattice, crystal.atom_types, wrap_coords(coords))
        found = symmetry_of(current, tolerance)
        if found is None or len(found.rotations) < num_found:
            break
        averaged = _average(lattice, coords, crystal.atom_types, found)
        if averaged is None:
            break
        moved = np.abs((averaged[1] - coords) @ lattice).max()
        stretched = np.abs(averaged[0] - lattice).max()
        after, is_last = found.number, len(found.rotations) == num_found
        num_found = len(found.rotations)
        if num_found == 1 or max(moved, stretched) < _SETTLED:
            break
        lattice, coords = averaged
        if is_last:
            break
    offsets = (coords - crystal.frac_coords) @ lattice
    return Symmetrized(
        Crystal(lattice, crystal.atom_types, wrap_coords(coords)),
        before,
        after,
        float(np.linalg.norm(offsets, axis=1).max()),
        float(np.abs(np.linalg.solve(crystal.lattice, lattice) - np.eye(3)).max()),
        num_found > num_before,
    )


def _average(
    lattice: np.ndarray, coords: np.ndarray, atom_types: np.ndarray, found: Any
) -> tuple[np.ndarray, np.ndarray] | None:
    """Lattice and fractional coordinates averaged over the operations of a `SpglibDataset`.

    None if the operations do not permute the atoms.
    """
    rotations = np.array(found.rotations, dtype=np.float64)
    metric = np.einsum("gji,jk,gkl->gil", rotations, lattice @ lattice.T, rotations).mean(0)
    averaged = _closest_lattice(metric, lattice)
    total = np.zeros_like(coords)
    rows = np.arange(len(coords))
    for rotation, shift in zip(rotations, found.translations, strict=True):
        images = coords @ rotation.T + shift
        offsets = images[:, None] - coords
        offsets -= np.rint(offsets)
        squares = np.square(offsets @ averaged).sum(-1)
        squares[atom_types[:, None] != atom_types] = np.inf
        onto = squares.argmin(1)
        if len(np.unique(onto)) < len(onto):
            return None
        total[onto] += offsets[rows, onto]
    shift = total.mean(0)  # of all atoms: operations at another origin hold as well
    return averaged, coords + (total - shift) / len(rotations)


def _closest_lattice(metric: np.ndarray, lattice: np.ndarray) -> np.ndarray:
    """The lattice with this metric tensor (Å^2) that is closest to the given one."""
    factor = np.linalg.cholesky(metric)
    left, _, right = np.linalg.svd(factor.T @ lattice)
    return factor @ (left @ right)
