import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from src.inspection.analysis import (
    CrystalAnalysis,
    analyze_crystal,
    analyze_crystals,
    chunks,
    map_structures,
    neighbor_distances,
)
from tests.crystals import rock_salt

ROCKSALT = rock_salt(5.6, "Na", "Cl")
CSCL = Structure.from_prototype("cscl", ["Cs", "Cl"], a=4.0)


def load(indices):
    return [(ROCKSALT, CSCL)[i] for i in indices]


def fails_on_cscl(structure, *_):
    if structure is CSCL:
        raise RuntimeError
    return len(structure)


def test_shells_of_neighbors():
    distances = neighbor_distances(ROCKSALT, 18)
    assert distances.shape == (8, 18)
    assert distances[:, :6] == pytest.approx(2.8)  # six of the other element
    assert distances[:, 6:] == pytest.approx(2.8 * np.sqrt(2))


def test_neighbors_of_a_layer_in_a_void():
    """The search radius, which follows from the mean density, has to grow."""
    layer = Structure(Lattice.tetragonal(2, 60), ["C"], [[0, 0, 0]])
    assert neighbor_distances(layer, 8)[0] == pytest.approx([2] * 4 + [2 * np.sqrt(2)] * 4)


def test_analysis_of_known_crystals():
    assert analyze_crystal(ROCKSALT) == (225, pytest.approx(2.8))
    assert analyze_crystal(CSCL) == (221, pytest.approx(2 * np.sqrt(3)))
    moved = CSCL.copy()
    moved.translate_sites([0], [0.05, 0, 0], frac_coords=False)
    assert [analyze_crystal(moved, symprec=symprec).space_group for symprec in (0.01, 0.2)] == [
        99,
        221,
    ]


def test_the_nearest_neighbor_may_be_an_image_of_the_same_atom():
    rod = Structure(Lattice.tetragonal(5, 2), ["C", "C"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert analyze_crystal(rod).min_distance == pytest.approx(2)


def test_analyzing_several_crystals():
    found = analyze_crystals(load, [1, 0, 1], num_workers=0)
    assert [x.space_group for x in found] == [221, 225, 221]
    assert all(isinstance(x, CrystalAnalysis) for x in found)
    assert analyze_crystals(load, [], num_workers=0) == []


def test_a_crystal_without_a_result_is_none():
    assert map_structures(fails_on_cscl, load, [0, 1, 0], num_workers=0, timeout=1.0) == [
        8,
        None,
        8,
    ]


def test_chunks():
    assert chunks([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]
    assert chunks([], 2) == []
