"""Find the space group of a crystal.

This module does not import torch, so that worker processes start quickly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import spglib

from src.data.cells import symmetry_of
from src.data.cif import Crystal

if TYPE_CHECKING:
    from pymatgen.core import Structure

SYMPREC = 0.1  # Å, the tolerance that the Materials Project uses


@dataclass(frozen=True, slots=True)
class SpaceGroup:
    """A space group found by spglib.

    Attributes:
        number: 1 to 230.
        operations_per_atom: order of the point group divided by the number of atoms in the
            primitive cell. For the same atoms, a subgroup always has a smaller value, even if only
            translations are lost.
    """

    number: int
    operations_per_atom: float


def space_group(structure: Structure, symprec: float = SYMPREC) -> SpaceGroup | None:
    """Find the space group of a crystal.

    Args:
        symprec: tolerance on atomic positions in Å.

    Returns:
        None if spglib finds no space group: the cell is flat, or atoms of one element overlap.
    """
    atom_types = np.array(structure.atomic_numbers)
    crystal = Crystal(structure.lattice.matrix, atom_types, structure.frac_coords)
    found = symmetry_of(crystal, symprec)
    if found is None:
        return None
    # From the database, because a supercell may have fewer rotations than the crystal.
    operations = spglib.get_symmetry_from_database(found.hall_number)
    assert operations is not None  # spglib returned the Hall number itself
    point_group = {rotation.tobytes() for rotation in operations["rotations"]}
    primitive = set(found.mapping_to_primitive.tolist())
    return SpaceGroup(found.number, len(point_group) / len(primitive))
