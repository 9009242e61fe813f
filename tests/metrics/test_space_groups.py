"""Find the space groups of textbook crystals."""

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
def test_the_space_group_does_not_depend_on_the_cell(structure, number):
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
def test_the_number_of_operations_agrees_with_the_tables(structure, symbol, primitive):
    order = len(PointGroup(symbol).symmetry_ops)
    assert space_group(structure).operations_per_atom == order / primitive


def test_losing_translations_lowers_the_symmetry():
    """Cu3Au has the point group of copper, but its primitive cell is four times as large."""
    copper = Structure(Lattice.cubic(3.7), ["Cu"] * 4, FCC)
    ordered = copper.copy()
    ordered[0] = "Au"
    assert (space_group(copper).number, space_group(ordered).number) == (225, 221)
    ratio = space_group(copper).operations_per_atom / space_group(ordered).operations_per_atom
    assert ratio == 4


def test_a_distortion_beyond_the_tolerance_lowers_the_symmetry():
    def displaced(by: float) -> Structure:
        structure = rocksalt()
        structure.translate_sites([0], [by, 0, 0], frac_coords=False)
        return structure

    ideal = space_group(rocksalt())
    assert space_group(displaced(0.2 * SYMPREC)) == ideal
    lost = space_group(displaced(2 * SYMPREC))
    assert lost.number == 99  # P4mm: the operations that keep the axis of the displacement
    assert lost.operations_per_atom == 1  # 8 operations, 8 atoms, and the centering is lost
    assert lost.operations_per_atom < ideal.operations_per_atom


def test_the_tolerance_is_in_angstrom():
    structure = cscl()
    structure.translate_sites([0], [0.05, 0, 0], frac_coords=False)
    numbers = [space_group(structure, symprec).number for symprec in (0.01, 0.2)]
    assert numbers == [99, 221]


def test_overlapping_atoms_and_flat_cells_have_no_space_group():
    close = Structure(Lattice.cubic(4), ["Cs", "Cs"], [[0] * 3, [0.001, 0, 0]])
    assert space_group(close) is None
    for cell in (torch.zeros(3, 3), 1e-6 * torch.eye(3), torch.ones(3, 3)):
        flat = Structure(Lattice(cell.numpy()), ["Cs", "Cl"], [[0] * 3, [0.5] * 3])
        assert space_group(flat) is None
