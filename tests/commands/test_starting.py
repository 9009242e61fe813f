"""Sizes that suit the data."""

import pytest

from src.commands.starting import batch_size_for


@pytest.mark.parametrize(
    ("number", "size"), [(1, 8), (100, 8), (256, 16), (1000, 32), (5000, 256), (10**6, 256)]
)
def test_few_crystals_get_small_batches(number, size):
    assert batch_size_for(number, 256) == size
    assert batch_size_for(number, 4) == 4  # never more than the config says
