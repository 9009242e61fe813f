"""Space groups of textbook crystals."""

import pytest
import torch
from pymatgen.core import Lattice, Structure
from pymatgen.symmetry.groups import PointGroup

from src.metrics.space_groups import SYMPREC, space_group

FCC = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
CHLORIDE = [[0.5, 0.5, 0.5], [0, 0, 0.5], [0, 0.5, 0], [0.5, 0, 0]]


def rocksalt() -> Structure:
    return Structure(Lattice.cubic(5.6), ["Na"] * 4 + ["Cl"] * 4, FCC + CHLORIDE)


def cscl() -> Structure:
    return Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0] * 3, [0.5] * 3])


def rutile() -> Structure:
    u = 0.305
    oxygen = [[u, u, 0], [-u, -u, 0], [0.5 + u, 0.5 - u, 0.5], [0.5 - u, 0.5 + u, 0.5]]
    lattice = Lattice.tetragonal(4.594, 2.959)
    return Structure(lattice, ["Ti"] * 2 + ["O"] * 4, [[0] * 3, [0.5] * 3, *oxygen])


def supercell(structure: Structure, *size: int) -> Structure:
    return structure.copy().make_supercell(size)


@pytest.mark.parametrize(
    ("structure", "number"), [(rocksalt(), 225), (cscl(), 221), (rutile(), 136)]
)
def test_a_group_does_not_depend_on_the_cell(structure, number):
    """The choice of a primitive, conventional, reduced or larger cell is no property of it."""
    cells = [
        structure,
        structure.get_primitive_structure(),
        structure.get_reduced_structure("niggli"),
        supercell(structure, 2, 1, 1),
        supercell(structure, 1, 3, 2),
    ]
    groups = [space_group(cell) for cell in cells]
    assert groups[0].number == number
    assert groups == [groups[0]] * len(cells)


@pytest.mark.parametrize(
    ("structure", "symbol", "primitive"),
    [(rocksalt(), "m-3m", 2), (cscl(), "m-3m", 2), (rutile(), "4/mmm", 6)],
)
def test_operations_are_those_of_the_tables(structure, symbol, primitive):
    order = len(PointGroup(symbol).symmetry_ops)
    assert space_group(structure).operations_per_atom == order / primitive


def test_a_lost_translation_is_less_symmetry():
    """Cu3Au has the point group of copper but a primitive cell four times as large."""
    copper = Structure(Lattice.cubic(3.7), ["Cu"] * 4, FCC)
    ordered = copper.copy()
    ordered[0] = "Au"
    assert (space_group(copper).number, space_group(ordered).number) == (225, 221)
    ratio = space_group(copper).operations_per_atom / space_group(ordered).operations_per_atom
    assert ratio == 4


def test_a_distortion_beyond_the_tolerance_loses_the_group():
    def displaced(by: float) -> Structure:
        structure = rocksalt()
        structure.translate_sites([0], [by, 0, 0], frac_coords=False)
        return structure

    ideal = space_group(rocksalt())
    assert space_group(displaced(0.2 * SYMPREC)) == ideal
    lost = space_group(displaced(2 * SYMPREC))
    assert lost.number == 99  # P4mm: the axis of the displacement, and what turns about it
    assert lost.operations_per_atom == 1  # 8 operations, 8 atoms, no centring any more
    assert lost.operations_per_atom < ideal.operations_per_atom


def test_the_tolerance_is_in_angstrom():
    structure = cscl()
    structure.translate_sites([0], [0.05, 0, 0], frac_coords=False)
    numbers = [space_group(structure, symprec).number for symprec in (0.01, 0.2)]
    assert numbers == [99, 221]


def test_no_group_for_what_is_no_crystal():
    close = Structure(Lattice.cubic(4), ["Cs", "Cs"], [[0] * 3, [0.001, 0, 0]])
    assert space_group(close) is None
    for cell in (torch.zeros(3, 3), 1e-6 * torch.eye(3), torch.ones(3, 3)):
        flat = Structure(Lattice(cell.numpy()), ["Cs", "Cl"], [[0] * 3, [0.5] * 3])
        assert space_group(flat) is None
