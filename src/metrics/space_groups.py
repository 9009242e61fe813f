"""Space groups. This module imports no torch: worker processes that use it start quickly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import spglib

from src.data.cells import symmetry_of
from src.data.cif import Crystal

if TYPE_CHECKING:
    from pymatgen.core import Structure

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
    atom_types = np.array(structure.atomic_numbers)
    crystal = Crystal(structure.lattice.matrix, atom_types, structure.frac_coords)
    found = symmetry_of(crystal, symprec)
    if found is None:
        return None
    # not the cell's own rotations, since a larger cell need not have all those of its crystal
    operations = spglib.get_symmetry_from_database(found.hall_number)
    assert operations is not None  # as for every number that spglib gives itself
    point_group = {rotation.tobytes() for rotation in operations["rotations"]}
    primitive = set(found.mapping_to_primitive.tolist())
    return SpaceGroup(found.number, len(point_group) / len(primitive))
