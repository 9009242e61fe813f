"""Choose the cell of a crystal: Niggli, primitive, conventional or as given."""

import os
import warnings
from typing import Any

import numpy as np
import spglib

from src.data.cif import SPGLIB_ERRORS, Crystal, CrystalError, niggli_reduce, orient
from src.utils.errors import UserError

# otherwise spglib's C code prints a line for each failed attempt
os.environ.setdefault("SPGLIB_WARNING", "OFF")

CELLS = ("niggli", "primitive", "conventional", "as_given")
SYMPREC = 0.01  # Å, tolerance for finding primitive and conventional cells


def choose_cell(crystal: Crystal, cell: str, symprec: float = SYMPREC) -> Crystal:
    """Convert a crystal to another cell, in pymatgen's orientation (see `read_cif`).

    Except for `as_given`, the result depends on the given cell in only two ways: if lengths or
    angles are equal, there are several such cells with the same parameters; and the Niggli cell of
    a non-primitive cell has the same volume as that cell. The origin is not changed, in
    conventional cells either.

    Args:
        crystal: a crystal in any cell.
        cell: `niggli`: the Niggli-reduced cell of the given lattice, with the same number of atoms.
            `primitive`: the smallest cell, Niggli-reduced. `conventional`: spglib's standardized
            cell, with one to four times the atoms of the primitive cell. `as_given`: the given
            cell, only rotated; a left-handed basis is inverted together with the coordinates.
        symprec: tolerance in Å within which spglib considers atoms equivalent, for `primitive` and
            `conventional`. Coordinates are not idealized: they change by at most this distance.

    Raises:
        CrystalError: if the lattice is not finite or has no volume, or spglib finds no such cell.
        UserError: if `cell` is not one of `CELLS`.
    """
    return finish_cell(standard_cell(crystal, cell, symprec), cell)


def standard_cell(crystal: Crystal, cell: str, symprec: float = SYMPREC) -> Crystal:
    """The first half of `choose_cell`: spglib's cell, before it is reduced or rotated.

    Returns:
        A cell in the orientation of `orient(crystal)`, or `crystal` itself if the choice of cell
        keeps the lattice.
    """
    if cell in ("niggli", "as_given"):
        return crystal
    if cell not in CELLS:
        raise UserError(f"cell must be one of {', '.join(CELLS)}, not {cell!r}")
    found = _ask_spglib(
        spglib.standardize_cell,
        orient(crystal), to_primitive=cell == "primitive", no_idealize=True, symprec=symprec,
    )  # fmt: skip
    if found is None:
        raise CrystalError(f"spglib finds no {cell} cell with symprec={symprec} Å")
    lattice, frac_coords, atom_types = found
    return Crystal(lattice, atom_types.astype(np.int64), frac_coords % 1.0 % 1.0)


def finish_cell(crystal: Crystal, cell: str) -> Crystal:
    """The second half of `choose_cell`: Niggli reduction, or only the standard orientation."""
    return niggli_reduce(crystal) if cell in ("niggli", "primitive") else orient(crystal)


def symmetry_of(crystal: Crystal, symprec: float) -> Any:
    """Find the symmetry of a crystal with spglib.

    Args:
        crystal: a crystal in any cell.
        symprec: tolerance on positions in Å.

    Returns:
        A `SpglibDataset`, or None if spglib finds no symmetry.
    """
    return _ask_spglib(spglib.get_symmetry_dataset, crystal, symprec=symprec)


def _ask_spglib(function: Any, crystal: Crystal, **options: Any) -> Any:
    cell = (crystal.lattice, crystal.frac_coords, crystal.atom_types)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how spglib reports failures
            return function(cell, **options)
    except SPGLIB_ERRORS:
        return None
