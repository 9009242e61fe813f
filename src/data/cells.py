"""The choice of a cell: the same crystal in its Niggli, primitive or conventional cell."""

import os
import warnings
from typing import Any

import numpy as np
import spglib

from src.data.cif import SPGLIB_ERRORS, Crystal, CrystalError, niggli_reduce, orient

# spglib's C code would write a line to the terminal for each of its attempts
os.environ.setdefault("SPGLIB_WARNING", "OFF")

CELLS = ("niggli", "primitive", "conventional", "as_given")
SYMPREC = 0.01  # Å, within which a primitive or conventional cell takes atoms for equivalent


def choose_cell(crystal: Crystal, cell: str, symprec: float = SYMPREC) -> Crystal:
    """The same crystal in another cell, in pymatgen's orientation (see `read_cif`).

    No choice but `as_given` depends on the cell that was given, but for two things: where lengths
    or angles tie there are several such cells with the same parameters, and a Niggli cell of
    what is not primitive stays that of the larger lattice. The origin is as given, also in
    conventional cells.

    Args:
        crystal: any cell.
        cell: `niggli`: the reduced cell of the lattice as given, with as many atoms. `primitive`:
            the smallest cell, Niggli-reduced. `conventional`: the standardised cell of spglib,
            with one to four times the atoms of the primitive one. `as_given`: only turned, and a
            left-handed basis inverted together with the coordinates.
        symprec: for `primitive` and `conventional`, within which spglib takes atoms for equivalent,
            Å. Coordinates are not idealised: they change by no more than that.

    Raises:
        CrystalError: if the lattice is not finite or has no volume, or spglib finds no such cell.
        ValueError: for another name.
    """
    return finish_cell(standard_cell(crystal, cell, symprec), cell)


def standard_cell(crystal: Crystal, cell: str, symprec: float = SYMPREC) -> Crystal:
    """The first half of `choose_cell`: spglib's cell, neither reduced nor rotated.

    It spans the lattice of `orient(crystal)` (a part of it, or more than it). For a choice that
    keeps the lattice it is `crystal` itself.
    """
    if cell in ("niggli", "as_given"):
        return crystal
    if cell not in CELLS:
        raise ValueError(f"a cell is one of {', '.join(CELLS)}, not {cell!r}")
    found = _ask_spglib(
        spglib.standardize_cell,
        orient(crystal), to_primitive=cell == "primitive", no_idealize=True, symprec=symprec,
    )  # fmt: skip
    if found is None:
        raise CrystalError(f"spglib finds no {cell} cell at {symprec} Å")
    lattice, frac_coords, atom_types = found
    return Crystal(lattice, atom_types.astype(np.int64), frac_coords % 1.0 % 1.0)


def finish_cell(crystal: Crystal, cell: str) -> Crystal:
    """The second half of `choose_cell`: Niggli-reduced or only oriented, as the choice has it."""
    return niggli_reduce(crystal) if cell in ("niggli", "primitive") else orient(crystal)


def symmetry_of(crystal: Crystal, symprec: float) -> Any:
    """What spglib finds (a `SpglibDataset`); None where it finds nothing.

    Args:
        symprec: tolerance on positions, Å.
    """
    return _ask_spglib(spglib.get_symmetry_dataset, crystal, symprec=symprec)


def _ask_spglib(function: Any, crystal: Crystal, **options: Any) -> Any:
    cell = (crystal.lattice, crystal.frac_coords, crystal.atom_types)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # spglib's, about how it reports failures
            return function(cell, **options)
    except SPGLIB_ERRORS:
        return None
