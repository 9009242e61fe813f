"""Numbers that describe crystals, for comparing sets and for finding implausible crystals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import covalent_radii
from pymatgen.core import Structure
from rich.progress import track

from src.data.cells import symmetry_of
from src.data.structures import to_crystal
from src.metrics.space_groups import SYMPREC
from src.metrics.structure_matching.crystals import PreparedCrystals
from src.metrics.structure_matching.reduction import Cell

ISOLATED = 1.5
"""An atom is isolated if no other is within this many times the sum of their covalent radii."""

_IMAGES = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
_MAX_PAIRS = 2**20  # of atoms and images at once; their vectors take 24 MiB
_NUM_ELEMENTS = len(covalent_radii)


@dataclass(frozen=True, slots=True)
class Descriptors:
    """What is compared of n crystals.

    Attributes:
        density: (n,) g/cm^3.
        volume_per_atom: (n,) Å^3.
        num_elements, num_atoms: (n,) numbers; of the atoms in the cell.
        lengths: (n, 3) Å, of the Niggli cell, a <= b <= c; NaN if it cannot be reduced.
        angles: (n, 3) degrees, of the same cell.
        space_group: (n,) number, found by spglib within 0.1 Å; 0 if there is none.
        elements: (n, Z) number of atoms of each element, by atomic number.
        closest: (n,) the smallest distance between two atoms, or an atom and its image, over the
            sum of their covalent radii (dimensionless; Cordero et al., Dalton Trans. 2832 (2008),
            as ASE has them); NaN if the cell cannot be reduced.
        isolated: (n,) whether one of the atoms is isolated, see `ISOLATED`.
    """

    density: np.ndarray
    volume_per_atom: np.ndarray
    num_elements: np.ndarray
    num_atoms: np.ndarray
    lengths: np.ndarray
    angles: np.ndarray
    space_group: np.ndarray
    elements: np.ndarray
    closest: np.ndarray
    isolated: np.ndarray

    def __len__(self) -> int:
        return len(self.density)

    def part(self, indices: Sequence[int] | np.ndarray) -> Descriptors:
        """Those of some of the crystals."""
        chosen = np.asarray(indices, dtype=int)
        return Descriptors(*(getattr(self, name)[chosen] for name in self.__slots__))


def describe(structures: Sequence[Structure], progress: bool = False) -> Descriptors:
    """Describe ordered crystals with a valid geometry.

    This takes some milliseconds for each, most of them for the space group.
    """
    cells = PreparedCrystals(structures).cells(range(len(structures)), primitive=False)
    shown = track(cells, "descriptors", disable=not progress, transient=True)
    shapes = [_shape(cell) for cell in shown]
    lengths, angles, closest, farthest = (
        np.array([shape[i] for shape in shapes], dtype=float) for i in range(4)
    )
    found = [symmetry_of(to_crystal(structure), SYMPREC) for structure in structures]
    elements = [np.bincount(s.atomic_numbers, minlength=_NUM_ELEMENTS) for s in structures]
    return Descriptors(
        density=np.array([float(s.density) for s in structures]),
        volume_per_atom=np.array([s.volume / len(s) for s in structures]),
        num_elements=np.array([len(set(s.atomic_numbers)) for s in structures], dtype=int),
        num_atoms=np.array([len(s) for s in structures], dtype=int),
        lengths=lengths.reshape(-1, 3),
        angles=angles.reshape(-1, 3),
        space_group=np.array([0 if each is None else each.number for each in found], dtype=int),
        elements=np.array(elements, dtype=int).reshape(-1, _NUM_ELEMENTS),
        closest=closest,
        isolated=farthest > ISOLATED,
    )


def _shape(cell: object) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Lengths and angles of a Niggli cell, and the smallest and largest of `nearest_ratios`."""
    if not isinstance(cell, Cell):
        return np.full(3, np.nan), np.full(3, np.nan), np.nan, np.nan
    lengths = np.linalg.norm(cell.lattice, axis=1)
    a, b, c = cell.lattice / lengths[:, None]
    angles = np.degrees(np.arccos(np.clip([b @ c, a @ c, a @ b], -1, 1)))
    ratios = nearest_ratios(cell)
    return lengths, angles, float(ratios.min()), float(ratios.max())


def nearest_ratios(cell: Cell) -> np.ndarray:
    """For each atom, the smallest distance to another over the sum of their covalent radii.

    Args:
        cell: a Niggli cell. It is reduced in Minkowski's sense too, so the nearest image of an atom
            is among the 27 around the one with differences of coordinates below one half.

    Returns:
        (n,) dimensionless. The images of an atom are other atoms.
    """
    count, radii = len(cell.kinds), covalent_radii[cell.kinds]
    shifts = _IMAGES @ cell.lattice  # (27, 3) Å
    images_of_itself = np.linalg.norm(shifts, axis=1)
    images_of_itself = images_of_itself[images_of_itself > 0].min()
    nearest = []
    for rows in np.array_split(np.arange(count), count * count * len(shifts) // _MAX_PAIRS + 1):
        difference = cell.frac_coords[rows, None] - cell.frac_coords[None]
        vectors = (difference - np.round(difference)) @ cell.lattice
        squared = np.square(vectors[:, :, None] + shifts).sum(axis=3).min(axis=2)
        distances = np.sqrt(squared)
        distances[np.arange(len(rows)), rows] = images_of_itself
        nearest.append((distances / (radii[rows, None] + radii)).min(axis=1))
    return np.concatenate(nearest)
