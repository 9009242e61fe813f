import numpy as np
import pytest
from scipy import stats

from src.metrics.generation.two_sample import energy_test, standardized


def test_in_one_dimension_it_is_the_distance_that_scipy_has():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(40, 1)), rng.normal(0.7, 2, size=(25, 1))
    found = energy_test(first, second, permutations=3).energy_distance
    # SciPy's is the square root of one half of it, see its documentation
    assert found == pytest.approx(stats.energy_distance(first[:, 0], second[:, 0]) ** 2)


def test_the_p_value_counts_all_divisions():
    """With two vectors each, one of three divisions is as far apart as the one given."""
    near, far = np.array([[0.0], [0.1]]), np.array([[9.0], [9.1]])
    found = energy_test(near, far, seed=1, permutations=2999)
    assert found.p_value == pytest.approx(1 / 3, abs=0.03)
    assert energy_test(near, near).energy_distance == pytest.approx(0, abs=1e-12)


def test_p_values_are_uniform_for_equal_distributions_and_small_for_others():
    rng = np.random.default_rng(0)
    same = [
        energy_test(*rng.normal(size=(2, 20, 3)), seed=i, permutations=99).p_value
        for i in range(60)
    ]
    assert stats.kstest(same, "uniform").pvalue > 0.01
    first, second = rng.normal(size=(2, 60, 3))
    second[:, 0] *= 3  # equal means
    one, again = (energy_test(first, second, seed=5) for _ in range(2))
    assert one == again
    assert one.p_value <= 0.005


def test_standardized_by_the_reference():
    reference = np.array([[1.0, 5.0], [3.0, 5.0]])
    np.testing.assert_allclose(standardized(np.array([[4.0, 7.0]]), reference), [[2.0, 2.0]])


@pytest.mark.parametrize("second", [np.zeros((0, 2)), np.zeros((3, 1)), np.full((3, 2), np.nan)])
def test_bad_samples(second):
    with pytest.raises(ValueError, match=r"expected|not finite"):
        energy_test(np.zeros((3, 2)), second)
