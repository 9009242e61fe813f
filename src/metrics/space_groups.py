"""Space groups. This module imports no torch: worker processes that use it start quickly."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import spglib

if TYPE_CHECKING:
    from pymatgen.core import Structure

# spglib's C code would write a line to the terminal for each of its attempts
os.environ.setdefault("SPGLIB_WARNING", "OFF")

SYMPREC = 0.1  # Å, the Materials Project's tolerance for space groups


@dataclass(frozen=True, slots=True)
class SpaceGroup:
    """A space group as spglib finds it.

    Attributes:
        number: 1 to 230.
        operations_per_atom: order of the point group over the atoms of a primitive cell. Of the
            groups of one set of atoms, a subgroup always has fewer, translations lost included.
    """

    number: int
    operations_per_atom: float


def space_group(structure: Structure, symprec: float = SYMPREC) -> SpaceGroup | None:
    """The space group of a crystal; None where spglib finds none (in a flat cell, or where atoms of
    one element overlap).

    Args:
        symprec: tolerance on positions in Å.
    """
    positions = structure.frac_coords.tolist()
    cell = (structure.lattice.matrix.tolist(), positions, list(structure.atomic_numbers))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # spglib's, about how it reports failures
            found = spglib.get_symmetry_dataset(cell, symprec=symprec)
    except spglib.SpglibError:
        found = None
    if found is None:
        return None
    # not the cell's own rotations, since a larger cell need not have all those of its crystal
    operations = spglib.get_symmetry_from_database(found.hall_number)
    assert operations is not None  # as for every number that spglib gives itself
    point_group = {rotation.tobytes() for rotation in operations["rotations"]}
    primitive = set(found.mapping_to_primitive.tolist())
    return SpaceGroup(found.number, len(point_group) / len(primitive))
