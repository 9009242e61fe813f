import numpy as np
import pytest
from pymatgen.core import Structure
from pymatgen.core.structure_matcher import StructureMatcher

from src.metrics.structure_matching import reduction
from src.metrics.structure_matching.reduction import (
    Cell,
    ReductionError,
    kind_name,
    kind_of,
    niggli_cells,
    primitive_cells,
)
from tests.metrics.structure_matching.conftest import (
    DIAMOND,
    PEROVSKITE,
    cell_of,
    in_another_cell,
    shaken,
)


@pytest.fixture(scope="module")
def crystals(prototypes, hard_crystals) -> list[Structure]:
    """Cells that hold one or more primitive ones, exactly, nearly or hardly."""
    some = prototypes[:30] + hard_crystals
    multiples = [crystal * [2, 1, 1] for crystal in some[::3]]
    return [
        *some,
        *multiples,
        *(shaken(crystal, 0.01, k) for k, crystal in enumerate(multiples)),
        *(shaken(crystal, 0.05, k) for k, crystal in enumerate(multiples[:6])),
        DIAMOND * [1, 2, 1],
        PEROVSKITE * [2, 2, 1],
    ]


@pytest.mark.parametrize("primitive", [False, True])
def test_reduced_cells_are_pymatgen_s(crystals, primitive):
    found = niggli_cells([cell_of(crystal) for crystal in crystals])
    if primitive:
        found = primitive_cells(found)
    smaller = 0
    for crystal, cell in zip(crystals, found, strict=True):
        expected = StructureMatcher._get_reduced_structure(crystal, primitive)
        assert [specie.Z for specie in expected.species] == cell.kinds.tolist()
        np.testing.assert_allclose(cell.lattice, expected.lattice.matrix, atol=1e-10)
        np.testing.assert_allclose(cell.frac_coords, expected.frac_coords, atol=1e-10)
        smaller += len(cell.kinds) < len(crystal)
    assert smaller > 10 if primitive else smaller == 0


def test_a_skewed_cell_costs_no_more():
    matrix = [[1, 0, 0], [150, 1, 0], [-90, 400, 1]]
    (cell,) = niggli_cells([cell_of(in_another_cell(PEROVSKITE, matrix))])
    np.testing.assert_allclose(np.abs(np.linalg.det(cell.lattice)), 3.9**3)
    np.testing.assert_allclose(np.linalg.norm(cell.lattice, axis=1), 3.9)


def test_what_cannot_be_reduced_says_why_and_spares_the_others():
    good = cell_of(PEROVSKITE)
    moved = good.frac_coords.copy()
    moved[1, 1] = np.nan
    found = niggli_cells(
        [
            Cell(good.lattice, good.kinds, moved),
            good,
            Cell(np.zeros((3, 3)), good.kinds, good.frac_coords),
            Cell(np.full((3, 3), np.inf), good.kinds, good.frac_coords),
            Cell(np.diag([1e-3, 4, 1e6]), good.kinds, good.frac_coords),
        ]
    )
    messages = [str(each) if isinstance(each, ReductionError) else "" for each in found]
    assert "coordinates that are not finite" in messages[0]
    assert messages[1] == ""
    assert "volume 0.0" in messages[2]
    assert "volume nan" in messages[3]
    assert "lattice points, over the limit" in messages[4]


def test_many_ways_to_be_a_multiple_are_counted_before_they_are_tried(monkeypatch):
    cell = cell_of(DIAMOND * [2, 1, 1])
    monkeypatch.setattr(reduction, "MAX_SUPERCELL_WORK", 1000)
    found, other = primitive_cells([cell, cell_of(PEROVSKITE)])
    assert "over the limit" in str(found)
    assert isinstance(other, Cell)


def test_a_large_cell_takes_little_memory(monkeypatch):
    """Arrays are cut into parts, which changes nothing."""
    cells = [cell_of(DIAMOND * [2, 1, 1]), cell_of(PEROVSKITE * [2, 2, 1])]
    expected = primitive_cells(cells)
    monkeypatch.setattr(reduction, "_MAX_ELEMENTS", 7)
    for cell, other in zip(primitive_cells(cells), expected, strict=True):
        np.testing.assert_array_equal(cell.frac_coords, other.frac_coords)


def test_kinds_of_elements_are_their_numbers_and_ions_have_their_own():
    assert kind_of("Fe") == 26
    ion = kind_of("Fe3+")
    assert ion == kind_of("Fe3+") > 118
    assert kind_name(ion) == "Fe3+"
    assert kind_name(26) == "Fe"


def test_atoms_are_ranked_by_how_rare_their_kind_is_and_then_by_place():
    cell = Cell(np.eye(3), np.array([8, 26, 3, 8, 3, 26]), np.zeros((6, 3)))
    assert cell.composition == ((3, 8, 26), (2, 2, 2))
    assert cell.ranking == (1, 2, 0)
    assert cell.sorted_by((1, 2, 0))[0].tolist() == [0, 3, 1, 5, 2, 4]


def test_a_crystal_in_its_niggli_cell_is_left_alone():
    """Even where its coordinates are outside the cell."""
    (cell,) = niggli_cells([cell_of(PEROVSKITE)])
    moved = Cell(cell.lattice, cell.kinds, cell.frac_coords - 1)
    (again,) = niggli_cells([moved])
    assert again is moved
