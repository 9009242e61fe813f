import numpy as np
import pandas as pd
import pytest

from src.inspection.page import bin_edges, crystal_systems


def test_bins_cover_all_values():
    values = np.random.default_rng(0).uniform(3, 9, 1000)
    edges = bin_edges(values)
    assert len(edges) == 41
    assert (edges[0], edges[-1]) == (values.min(), values.max())


def test_an_outlier_does_not_squeeze_the_others():
    values = np.append(np.random.default_rng(0).uniform(3, 9, 10_000), 1e6)
    edges = bin_edges(values)
    assert edges[-1] == pytest.approx(12, abs=0.1)
    assert np.histogram(values, edges)[0].sum() == 10_000


def test_equal_values():
    for value in (0.0, 90.0, -3.0):
        edges = bin_edges(np.full(5, value))
        assert edges[0] < value < edges[-1]


def test_whole_numbers_have_a_bin_each():
    assert bin_edges(np.array([2.0, 5.0]), is_whole=True).tolist() == [1.5, 2.5, 3.5, 4.5, 5.5]
    edges = bin_edges(np.array([1.0, 200.0]), is_whole=True)
    assert np.diff(edges).tolist() == [3.0] * (len(edges) - 1)
    assert edges[0] < 1
    assert edges[-1] > 200


def test_crystal_systems():
    numbers = pd.Series([1, 2, 3, 75, 142, 143, 167, 168, 194, 195, 230, None], dtype="Int64")
    assert crystal_systems(numbers).tolist()[:-1] == [
        "triclinic", "triclinic", "monoclinic", "tetragonal", "tetragonal", "trigonal", "trigonal",
        "hexagonal", "hexagonal", "cubic", "cubic",
    ]  # fmt: skip
    assert crystal_systems(numbers).isna().tolist() == [False] * 11 + [True]
