import itertools

import numpy as np
import pytest

from src.metrics.structure_matching.assignment import assign_kind


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_the_least_sum_and_whether_another_choice_is_as_good(size):
    """Against all permutations, of costs with many ties."""
    matrices = np.random.default_rng(size).integers(0, 6, (120, size, size)).astype(float)
    permutations = np.array(list(itertools.permutations(range(size))))
    columns, total, unsure = assign_kind(matrices)
    for matrix, chosen, least, another in zip(matrices, columns, total, unsure, strict=True):
        sums = matrix[np.arange(size), permutations].sum(axis=1)
        assert least == matrix[np.arange(size), chosen].sum() == sums.min()
        assert another or (sums == sums.min()).sum() == 1
    assert 0 < unsure.sum() < len(unsure)
