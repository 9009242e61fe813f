"""Crystals of similar sizes are solved for together, unless one size alone has enough atoms."""

import pytest
import torch

from src.ldm_module.sizes import similar_sizes


@pytest.mark.parametrize(
    ("num_atoms", "groups"),
    [
        ([3, 1, 2], [[1, 2, 3]]),  # all have fewer atoms than a group should
        ([5] * 4 + [2] * 10 + [9] * 3, [[2], [5], [9]]),
        ([2, 3, 20, 4, 4], [[2, 3, 4, 20]]),
        ([2] * 10 + [3, 4, 20], [[2], [3, 4, 20]]),
        ([2] * 10 + [3, 4], [[2, 3, 4]]),  # what is left at the end joins the last group
        ([], []),
    ],
)
def test_groups(num_atoms, groups):
    found = similar_sizes(torch.tensor(num_atoms, dtype=torch.long), fewest=20)
    assert [group.tolist() for group in found] == groups
