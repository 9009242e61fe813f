"""The same crystal in the cell that was given and in the cell of a choice, and the way back."""

from dataclasses import dataclass

import numpy as np

from src.data.cells import SYMPREC, finish_cell, standard_cell
from src.data.cif import Crystal, orient

# Å. Atoms that spglib merges are within SYMPREC of the merged one; two atoms are never this close.
TOLERANCE = 10 * SYMPREC

# The entries of `CellChange.basis` are multiples of 1/12: a conventional cell is centered by halves
# or thirds of its vectors.
DENOMINATOR = 12


@dataclass(frozen=True, slots=True, eq=False)
class CellChange:
    """A crystal as given and as chosen, and how the two are related.

    A position has the fractional coordinates `x` in the given cell and `x @ basis` in the chosen
    one.

    Attributes:
        given: n atoms, any cell.
        chosen: m atoms, the same crystal in the cell that `choose_cell` gives.
        basis: (3, 3). Apart from a rotation, the given lattice is `basis @ chosen.lattice`.
        atoms: (n,) indices. Atom i of `given` is atom `atoms[i]` of `chosen`, within `TOLERANCE`
            and a translation of the chosen lattice. None if there is no such atom for each i.
        translations: (n, 3) integers, that translation in units of the chosen lattice vectors.
    """

    given: Crystal
    chosen: Crystal
    basis: np.ndarray
    atoms: np.ndarray | None
    translations: np.ndarray

    @property
    def is_changed(self) -> bool:
        """Whether the cells differ by more than a rotation or an inversion of the basis."""
        return not np.array_equal(self.basis * np.sign(self.basis[0, 0]), np.eye(3))

    def undo(self, crystal: Crystal) -> Crystal:
        """A changed copy of `chosen` in the given cell, orientation and order of atoms.

        Where the chosen cell is a multiple of the given one, each given atom is the one chosen
        atom at its place; the other copies of it are left out.

        Args:
            crystal: m atoms that correspond to those of `chosen`. Each is taken to have moved to
                the image nearest to where it is in `chosen`.

        Returns:
            n atoms in the order of `given`; `crystal` itself if `atoms` is None.
        """
        if self.atoms is None:
            return crystal
        moved = crystal.frac_coords - self.chosen.frac_coords
        frac_coords = self.chosen.frac_coords + moved - np.rint(moved)
        frac_coords = (frac_coords[self.atoms] + self.translations) @ np.linalg.inv(self.basis)
        lattice = self.basis @ crystal.lattice
        # the rotation that takes it nearest to the given lattice (Kabsch 1976)
        u, _, vt = np.linalg.svd(lattice.T @ self.given.lattice)
        rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
        atom_types = crystal.atom_types[self.atoms]
        return Crystal(lattice @ rotation, atom_types, frac_coords % 1.0 % 1.0)


def change_cell(crystal: Crystal, cell: str, symprec: float = SYMPREC) -> CellChange:
    """Put a crystal into the cell of a choice, and find the way back.

    Args:
        crystal: any cell, coordinates in [0, 1).
        cell, symprec: see `choose_cell`.

    Raises:
        CrystalError, ValueError: as `choose_cell`.
    """
    standard, basis = standard_cell(crystal, cell, symprec), np.eye(3)
    if standard is not crystal:
        oriented = orient(crystal)
        ratio = oriented.lattice @ np.linalg.inv(standard.lattice)
        # `orient` inverts a left-handed basis
        basis = np.sign(np.linalg.det(crystal.lattice)) * np.rint(DENOMINATOR * ratio) / DENOMINATOR
    # Coordinates come back modulo 1, so that those of a thousandth of each axis give the change.
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
    """`CellChange.atoms` and `CellChange.translations`."""
    positions = given.frac_coords @ basis
    atoms = np.zeros(given.num_atoms, dtype=np.int64)
    translations = np.zeros((given.num_atoms, 3))
    step = max(1, 2**20 // chosen.num_atoms)  # rows at a time, to bound the memory
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
