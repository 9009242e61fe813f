"""One crystal as plain arrays: checks, Niggli reduction, orientation, geometry of the cell."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import spglib

from src.utils.errors import UserError

# Å^3 and Å. Far below the volume of an atom and far above the size of any unit cell, so that no
# calculation here can overflow or divide by zero.
MIN_VOLUME = 1e-3
MAX_LATTICE_ENTRY = 1e4

OCCUPANCY_TOLERANCE = 1e-3  # an atom with an occupancy of 0.9995 is fully occupied

# When spglib fails, old versions return None. New versions raise this, depending on their settings.
SPGLIB_ERRORS = (spglib.SpglibError,) if hasattr(spglib, "SpglibError") else ()

_HOME_CELL = np.zeros((1, 3))
_NEIGHBOR_CELLS = np.stack(np.meshgrid(*3 * [[-1.0, 0.0, 1.0]]), axis=-1).reshape(27, 3)


class CrystalError(UserError):
    """A crystal that cannot be used. The message is the reason, in one line."""


@dataclass(frozen=True, slots=True, eq=False)
class Crystal:
    """A unit cell and the n atoms in it.

    Attributes:
        lattice: (3, 3) float64, Å. The rows are the lattice vectors a, b and c.
        atom_types: (n,) int64, atomic numbers.
        frac_coords: (n, 3) float64, in [0, 1).
    """

    lattice: np.ndarray
    atom_types: np.ndarray
    frac_coords: np.ndarray

    @property
    def num_atoms(self) -> int:
        return len(self.atom_types)


def check_crystal(
    crystal: Crystal,
    max_num_atoms: int | None = None,
    max_atomic_number: int = 99,
    min_distance: float = 0.5,
) -> None:
    """Reject a crystal that a model should not be trained on.

    Distances take periodic images into account, including those between an atom and its own
    images. The run time grows with the square of the number of atoms, so set `max_num_atoms`.

    Args:
        crystal: the crystal, whose cell need not be reduced.
        max_num_atoms: largest number of atoms allowed; None for no limit.
        max_atomic_number: largest atomic number allowed.
        min_distance: smallest distance allowed between two atoms, Å.

    Raises:
        CrystalError: if the crystal has no atoms or too many, an element out of range, a coordinate
            or lattice entry that is not finite, a cell without volume, or overlapping atoms.
    """
    num_atoms = crystal.num_atoms
    if num_atoms == 0:
        raise CrystalError("no atoms")
    if max_num_atoms is not None and num_atoms > max_num_atoms:
        raise CrystalError(f"{num_atoms} atoms: more than {max_num_atoms}")
    lightest, heaviest = int(crystal.atom_types.min()), int(crystal.atom_types.max())
    if lightest < 1 or heaviest > max_atomic_number:
        outside = lightest if lightest < 1 else heaviest
        raise CrystalError(f"atomic number {outside} is outside 1 to {max_atomic_number}")
    if not np.isfinite(crystal.frac_coords).all():
        raise CrystalError("a fractional coordinate is NaN or infinite")
    signed_volume(crystal.lattice)
    if pair := _find_overlap(crystal, min_distance):
        i, j, distance = pair
        atoms = f"atoms {i} and {j}" if i != j else f"atom {i} and its own periodic image"
        raise CrystalError(f"{atoms} are {distance:.3f} Å apart, closer than {min_distance} Å")


def check_numbers(crystal: Crystal) -> None:
    """Reject a crystal whose coordinates or cell are not usable numbers.

    Raises:
        CrystalError: if a number is not finite, or the cell is huge or has no volume.
    """
    if not np.isfinite(crystal.frac_coords).all():
        raise CrystalError("a coordinate is not finite")
    if not np.abs(crystal.lattice).max() < MAX_LATTICE_ENTRY:
        raise CrystalError(f"a lattice entry is not a number below {MAX_LATTICE_ENTRY:g} Å")
    if not (volume := abs(np.linalg.det(crystal.lattice))) >= MIN_VOLUME:
        raise CrystalError(f"the cell has no volume ({volume:.1e} Å^3)")


def niggli_reduce(crystal: Crystal) -> Crystal:
    """Convert a crystal to its Niggli-reduced cell, in pymatgen's orientation (see `orient`).

    The order of the atoms does not change. Neither does the handedness of the crystal: a
    left-handed basis is inverted together with the coordinates, so that no atom moves.

    Raises:
        CrystalError: if the lattice is not finite or has no volume, or if spglib finds no reduced
            cell, as can happen for an extremely skewed or tiny cell.
    """
    lattice = crystal.lattice
    try:
        reduced = spglib.niggli_reduce(math.copysign(1.0, signed_volume(lattice)) * lattice)
    except SPGLIB_ERRORS:
        reduced = None
    if reduced is None:
        raise CrystalError("spglib finds no Niggli-reduced cell")
    if np.linalg.det(reduced) < 0:
        reduced = -reduced

    # Cartesian positions are frac_coords @ lattice in both bases, so this matrix converts old
    # fractional coordinates to new ones. Its entries are integers, because both bases span the
    # same lattice.
    transform = lattice @ np.linalg.inv(reduced)
    integers = np.rint(transform)
    if np.abs(transform - integers).max() > 1e-3 or abs(round(np.linalg.det(integers))) != 1:
        raise CrystalError("the Niggli-reduced cell does not span the lattice")
    lengths, cosines = lengths_and_cosines(reduced)
    return Crystal(
        lattice=_canonical_lattice(lengths, cosines),
        atom_types=crystal.atom_types,
        frac_coords=wrap_coords(crystal.frac_coords @ integers),
    )


def orient(crystal: Crystal) -> Crystal:
    """Rotate a crystal, without changing its cell, to pymatgen's orientation.

    This is the orientation of ``Lattice.from_parameters``: c along z, a in the xz plane,
    right-handed. A left-handed basis is inverted together with the coordinates, so that the crystal
    is not mirrored.

    Raises:
        CrystalError: if the lattice is not finite or has no volume.
    """
    lattice = crystal.lattice
    right_handed = signed_volume(lattice) > 0
    if right_handed and not np.any((lattice[0, 1], lattice[2, 0], lattice[2, 1])):
        return crystal
    frac_coords = crystal.frac_coords if right_handed else wrap_coords(-crystal.frac_coords)
    lengths, cosines = lengths_and_cosines(lattice)
    return Crystal(_canonical_lattice(lengths, cosines), crystal.atom_types, frac_coords)


def wrap_coords(frac_coords: np.ndarray) -> np.ndarray:
    """Fractional coordinates wrapped to [0, 1)."""
    wrapped = frac_coords - np.floor(frac_coords)
    wrapped[wrapped == 1.0] = 0.0  # -1e-17 - floor(-1e-17) rounds to 1
    return wrapped


def lattice_from_parameters(lengths: Sequence[float], angles: Sequence[float]) -> np.ndarray:
    """The lattice (3, 3), in pymatgen's orientation, for lengths in Å and angles in degrees.

    Raises:
        CrystalError: if no cell has these parameters.
    """
    if min(lengths) <= 0:
        raise CrystalError(f"cell length {min(lengths)} Å is not positive")
    for angle in angles:
        if not 0 < angle < 180:
            raise CrystalError(f"cell angle {angle} is not between 0 and 180 degrees")
    return _canonical_lattice(lengths, [math.cos(math.radians(angle)) for angle in angles])


def _canonical_lattice(lengths: Sequence[float], cosines: Sequence[float]) -> np.ndarray:
    """The right-handed lattice (3, 3) with c along z and a in the xz plane."""
    a, b, c = lengths
    cos_alpha, cos_beta, cos_gamma = cosines
    # Determinant of the metric tensor: the squared volume of the cell if all its lengths were 1
    metric_det = (
        1 - cos_alpha**2 - cos_beta**2 - cos_gamma**2 + 2 * cos_alpha * cos_beta * cos_gamma
    )
    if metric_det < 1e-12:  # flat, or not a cell; otherwise sin_beta cannot be zero
        raise CrystalError("no cell has these three angles")
    sin_beta = math.sqrt(1 - cos_beta**2)
    return np.array(
        [
            [a * sin_beta, 0.0, a * cos_beta],
            [
                b * (cos_gamma - cos_alpha * cos_beta) / sin_beta,
                b * math.sqrt(metric_det) / sin_beta,
                b * cos_alpha,
            ],
            [0.0, 0.0, c],
        ]
    )


def lengths_and_cosines(lattice: np.ndarray) -> tuple[list[float], list[float]]:
    """Lengths (a, b, c) in Å and the cosines of (alpha, beta, gamma)."""
    (aa, ab, ac), (_, bb, bc), (_, _, cc) = (lattice @ lattice.T).tolist()
    a, b, c = math.sqrt(aa), math.sqrt(bb), math.sqrt(cc)
    return [a, b, c], [bc / (b * c), ac / (a * c), ab / (a * b)]


def signed_volume(lattice: np.ndarray) -> float:
    """The volume of the cell in Å^3, negative if the lattice is left-handed.

    Raises:
        CrystalError: if a lattice entry is not finite or is huge, or the volume is almost zero.
    """
    if not np.abs(lattice).max() < MAX_LATTICE_ENTRY:
        raise CrystalError(f"a lattice entry is not a number below {MAX_LATTICE_ENTRY:g} Å")
    volume = float(np.linalg.det(lattice))
    if abs(volume) < MIN_VOLUME:
        raise CrystalError(f"the cell has no volume ({abs(volume):.1e} Å^3)")
    return volume


def closest_contact(crystal: Crystal) -> list[tuple[int, int, float]]:
    """For each pair of elements, the indices and distance (Å) of the two closest atoms."""
    crystal = niggli_reduce(crystal)
    images = _NEIGHBOR_CELLS @ crystal.lattice
    closest: dict[tuple[int, int], tuple[int, int, float]] = {}
    for i, position in enumerate(crystal.frac_coords):
        offsets = crystal.frac_coords[i:] - position
        offsets -= np.rint(offsets)
        vectors = (offsets @ crystal.lattice)[:, None] + images
        distances = np.sqrt(np.einsum("jkx,jkx->jk", vectors, vectors))
        distances[0, distances[0] < 1e-9] = np.inf  # the atom itself
        nearest = distances.min(axis=1)
        for j, distance in enumerate(nearest.tolist(), start=i):
            first, second = sorted((int(crystal.atom_types[i]), int(crystal.atom_types[j])))
            known = closest.get((first, second))
            if known is None or distance < known[2]:
                closest[first, second] = (i, j, distance)
    return list(closest.values())


def _find_overlap(crystal: Crystal, cutoff: float) -> tuple[int, int, float] | None:
    """Indices i, j and the distance of two atoms closer than the cutoff, or None.

    i == j means an atom and its own periodic image.
    """
    # For points closer than the cutoff, fractional coordinates differ by less than
    # cutoff / spacing along each axis. If that is below 1/2, only the nearest image along each axis
    # can be so close, and no lattice vector is as short as the cutoff. This holds for any cell.
    spacings = 1 / np.linalg.norm(np.linalg.inv(crystal.lattice), axis=0)
    images = _HOME_CELL
    if spacings.min() <= 2 * cutoff:
        # In a Niggli cell, a is the shortest lattice vector and abc <= sqrt(2) volume, so no
        # spacing is below a / sqrt(2), and only images less than 1/2 + sqrt(2) < 2 cells away
        # can be close enough.
        crystal = niggli_reduce(crystal)
        shortest = float(np.linalg.norm(crystal.lattice, axis=1).min())
        if shortest < cutoff:
            return 0, 0, shortest
        images = _NEIGHBOR_CELLS @ crystal.lattice

    frac_coords, num_atoms = crystal.frac_coords, crystal.num_atoms
    step = max(1, 2**16 // (num_atoms * len(images)))  # rows per chunk, to limit memory
    for start in range(0, num_atoms, step):
        offsets = frac_coords[start : start + step, None] - frac_coords
        offsets -= np.rint(offsets)
        vectors = (offsets @ crystal.lattice)[:, :, None] + images
        squares = np.einsum("ijkx,ijkx->ijk", vectors, vectors).min(axis=2)
        rows = np.arange(len(squares))
        squares[rows, start + rows] = np.inf  # exclude each atom's distance to itself
        if squares.min() < cutoff**2:
            i, j = np.unravel_index(squares.argmin(), squares.shape)
            return start + int(i), int(j), math.sqrt(squares[i, j])
    return None
