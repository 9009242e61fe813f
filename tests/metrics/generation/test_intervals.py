import math
import time

import numpy as np
import pytest

from src.metrics.generation.intervals import (
    half_width,
    mean_interval,
    share_interval,
    with_intervals,
)


@pytest.mark.parametrize(("share", "count"), [(0.5, 400), (0.9, 1000), (0.02, 5000)])
def test_the_interval_of_a_share_is_that_of_the_binomial_distribution(share, count):
    low, high = share_interval(share, count)
    normal = 1.96 * math.sqrt(share * (1 - share) / count)
    assert low < share < high
    assert half_width([low, high]) == pytest.approx(normal, rel=0.1)


def test_the_shortcut_is_the_bootstrap_over_crystals():
    """Drawing crystals one by one gives the same limits."""
    flags = np.arange(200) < 60
    drawn = np.random.default_rng(1).integers(200, size=(4000, 200))
    limits = np.quantile(flags[drawn].mean(axis=1), [0.025, 0.975])
    assert share_interval(0.3, 200) == pytest.approx(limits, abs=0.011)
    assert mean_interval(flags) == pytest.approx(limits, abs=0.011)


def test_it_depends_on_the_seed_alone_and_is_quick():
    values = np.random.default_rng(0).random(10_000)
    start = time.process_time()
    assert mean_interval(values, 3) == mean_interval(values, 3) != mean_interval(values, 4)
    assert share_interval(0.4, 10_000, 3) == share_interval(0.4, 10_000, 3)
    assert time.process_time() - start < 2  # 0.04 s each on a free core


def test_figures_get_intervals():
    figures = {"a": 0.5, "b": None, "c": 0.25, "all": 1.0}
    found = with_intervals(figures, {"a": 100, "b": 0, "all": 7})
    assert list(found) == ["a", "a_interval", "b", "b_interval", "c", "all", "all_interval"]
    assert found["b_interval"] is None
    assert found["all_interval"] == [1, 1]
    assert half_width(None) is None
