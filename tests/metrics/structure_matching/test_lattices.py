import numpy as np
import pytest
from pymatgen.core import Lattice

from src.metrics.structure_matching import lattices
from tests.metrics.structure_matching.conftest import shaken


@pytest.fixture(scope="module")
def stack(prototypes, hard_crystals) -> np.ndarray:
    crystals = prototypes + hard_crystals
    shear = np.array([[1, 0, 0], [2, 1, 0], [-1, 1, 1]])
    given = [crystal.lattice.matrix for crystal in crystals]
    strained = [shaken(crystal, 0.1, k).lattice.matrix for k, crystal in enumerate(crystals)]
    return np.array(given + strained + [shear @ matrix for matrix in given])


def test_parameters(stack):
    lengths, angles = lattices.parameters(stack)
    expected = [Lattice(matrix).parameters for matrix in stack]
    np.testing.assert_array_equal(np.hstack([lengths, angles]), expected)
    again = [Lattice.from_parameters(*parameters).matrix for parameters in expected]
    np.testing.assert_array_equal(lattices.from_parameters(lengths, angles), again)


def test_volumes_and_heights(stack):
    np.testing.assert_allclose(lattices.volumes(stack), [Lattice(m).volume for m in stack])
    heights = [Lattice(m).reciprocal_lattice_crystallographic.abc for m in stack]
    np.testing.assert_allclose(lattices.inverse_heights(stack), heights)


def test_lll_reduction_takes_the_same_side_of_each_tie(stack):
    reduced, mapping = lattices.lll_reduce(stack)
    expected = [Lattice(matrix)._calculate_lll() for matrix in stack]
    np.testing.assert_array_equal(mapping, [pair[1] for pair in expected])
    np.testing.assert_allclose(reduced, [pair[0] for pair in expected], atol=1e-12)
    assert (mapping != np.eye(3)).any(axis=(1, 2)).sum() > 50


def test_niggli_reduction_finds_the_same_basis(stack):
    reduced, done = lattices.niggli_reduce(stack, *lattices.lll_reduce(stack))
    assert done.all()
    expected = [Lattice(matrix).get_niggli_reduced_lattice().matrix for matrix in stack]
    np.testing.assert_allclose(reduced, expected, atol=1e-10)


@pytest.mark.parametrize(("ltol", "atol"), [(0.3, 10.0), (0.2, 5.0), (1e-4, 1.0)])
def test_mappings_come_in_the_same_order(stack, ltol, atol):
    some = stack[:40]
    targets = some @ (np.eye(3) + 0.03 * np.random.default_rng(0).standard_normal((40, 3, 3)))
    lengths, angles = lattices.parameters(targets)
    found = lattices.find_mappings(some, lengths, angles, np.full(40, ltol), atol)
    total = 0
    for k, (matrix, target) in enumerate(zip(some, targets, strict=True)):
        expected = list(
            Lattice(matrix).find_all_mappings(
                Lattice(target), ltol, atol, skip_rotation_matrix=True
            )
        )
        mine = found.owner == k
        assert mine.sum() == len(expected)
        total += len(expected)
        for basis, determinant, (lattice, _, scale) in zip(
            found.bases[mine], found.determinants[mine], expected, strict=True
        ):
            np.testing.assert_allclose(basis, lattice.matrix, atol=1e-10)
            assert determinant == round(np.linalg.det(scale))
    assert total > (0 if ltol < 1e-3 else 300) - 1


def test_small_cells_are_searched_as_far_as_pymatgen_does():
    tiny = np.array([0.3 * np.eye(3)])
    lengths, angles = lattices.parameters(tiny)
    found = lattices.find_mappings(tiny, lengths, angles, np.array([0.3]), 10.0)
    expected = list(Lattice(tiny[0]).find_all_mappings(Lattice(tiny[0]), 0.3, 10.0, True))
    np.testing.assert_allclose(found.bases, [lattice.matrix for lattice, _, _ in expected])
