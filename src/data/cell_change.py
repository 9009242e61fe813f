"""Convert a crystal to another cell, and a changed copy of the result back to the given cell."""

from dataclasses import dataclass

import numpy as np

from src.data.cells import SYMPREC, finish_cell, standard_cell
from src.data.cif import Crystal, orient

# Å. spglib merges atoms that are equivalent within SYMPREC; different atoms are never this close.
TOLERANCE = 10 * SYMPREC

# The entries of `CellChange.basis` are multiples of 1/12, because the centering vectors of a
# conventional cell are halves or thirds of its lattice vectors.
DENOMINATOR = 12


@dataclass(frozen=True, slots=True, eq=False)
class CellChange:
    """A crystal in the given cell and in a chosen cell, and the relation between the two.

    A position with the fractional coordinates `x` in the given cell has the coordinates `x @ basis`
    in the chosen cell.

    Attributes:
        given: the crystal in the given cell, n atoms.
        chosen: the same crystal in the cell that `choose_cell` returns, m atoms.
        basis: (3, 3). The given lattice is `basis @ chosen.lattice`, apart from a rotation.
        atoms: (n,) for each given atom, the index of the corresponding atom in `chosen`: they are
            the same up to `TOLERANCE` and a translation of the chosen lattice. None if a given
            atom has no such counterpart.
        translations: (n, 3) that translation, in units of the chosen lattice vectors.
    """

    given: Crystal
    chosen: Crystal
    basis: np.ndarray
    atoms: np.ndarray | None
    translations: np.ndarray

    @property
    def is_changed(self) -> bool:
        """Whether the cells differ by more than a rotation or inversion of the basis."""
        return not np.array_equal(self.basis * np.sign(self.basis[0, 0]), np.eye(3))

    def undo(self, crystal: Crystal) -> Crystal:
        """Convert a changed copy of `chosen` to the given cell, orientation and order of atoms.

        If the chosen cell is larger than the given cell, only the atoms at the positions of the
        given ones are used.

        Args:
            crystal: m atoms that correspond to those of `chosen`. Of the periodic images of an
                atom, the one nearest to its position in `chosen` is used.

        Returns:
            n atoms in the order of `given`, or `crystal` itself if `atoms` is None.
        """
        if self.atoms is None:
            return crystal
        moved = crystal.frac_coords - self.chosen.frac_coords
        frac_coords = self.chosen.frac_coords + moved - np.rint(moved)
        frac_coords = (frac_coords[self.atoms] + self.translations) @ np.linalg.inv(self.basis)
        lattice = self.basis @ crystal.lattice
        # the rotation that best aligns it with the given lattice (Kabsch 1976)
        u, _, vt = np.linalg.svd(lattice.T @ self.given.lattice)
        rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
        atom_types = crystal.atom_types[self.atoms]
        return Crystal(lattice @ rotation, atom_types, frac_coords % 1.0 % 1.0)


def change_cell(crystal: Crystal, cell: str, symprec: float = SYMPREC) -> CellChange:
    """Convert a crystal to another cell, and keep what is needed to convert it back.

    Args:
        crystal: a crystal in any cell, with coordinates in [0, 1).
        cell, symprec: see `choose_cell`.

    Raises:
        CrystalError, ValueError: as in `choose_cell`.
    """
    standard, basis = standard_cell(crystal, cell, symprec), np.eye(3)
    if standard is not crystal:
        oriented = orient(crystal)
        ratio = oriented.lattice @ np.linalg.inv(standard.lattice)
        # `orient` inverts a left-handed basis
        basis = np.sign(np.linalg.det(crystal.lattice)) * np.rint(DENOMINATOR * ratio) / DENOMINATOR
    # Coordinates are returned modulo 1, so mark a point at a thousandth of each axis: where the
    # three points end up tells how the basis was changed.
    marked = Crystal(
        standard.lattice,
        np.append(standard.atom_types, [1, 1, 1]),
        np.concatenate([standard.frac_coords, np.eye(3) / 1000]),
    )
    marked = finish_cell(marked, cell)
    axes = marked.frac_coords[-3:]
    chosen = Crystal(marked.lattice, marked.atom_types[:-3], marked.frac_coords[:-3])
    basis = basis @ np.rint(1000 * (axes - np.rint(axes)))
    return CellChange(crystal, chosen, basis, *_find_atoms(crystal, chosen, basis))


def _find_atoms(
    given: Crystal, chosen: Crystal, basis: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray]:
    """Find `CellChange.atoms` and `CellChange.translations`."""
    positions = given.frac_coords @ basis
    atoms = np.zeros(given.num_atoms, dtype=np.int64)
    translations = np.zeros((given.num_atoms, 3))
    step = max(1, 2**20 // chosen.num_atoms)  # given atoms at a time, to limit the memory
    for start in range(0, given.num_atoms, step):
        rows = slice(start, start + step)
        offsets = positions[rows, None] - chosen.frac_coords
        whole = np.rint(offsets)
        distances = np.linalg.norm((offsets - whole) @ chosen.lattice, axis=-1)
        distances[given.atom_types[rows, None] != chosen.atom_types] = np.inf
        nearest = distances.argmin(axis=1)
        here = np.arange(len(nearest))
        if not (distances[here, nearest] < TOLERANCE).all():
            return None, translations
        atoms[rows], translations[rows] = nearest, whole[here, nearest]
    return atoms, translations
