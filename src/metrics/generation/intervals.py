"""Confidence intervals of figures, by the bootstrap over crystals.

The bootstrap (Efron, Ann. Stat. 7, 1 (1979)) draws as many crystals as there are, with
replacement, takes the figure of the drawn ones, and repeats that; an interval holds the middle 95 %
of what comes out. It says how much a figure varies with the crystals that happened to be sampled,
not with the seed of the training.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

CONFIDENCE = 0.95
_SHARE_RESAMPLES = 10_000
_MEAN_RESAMPLES = 1_000
_MAX_DRAWN = 2**17  # values at once, which stay in the processor's cache


def fraction(flags: Sequence[bool]) -> float | None:
    """The fraction of true ones; None if there are none at all."""
    return sum(flags) / len(flags) if flags else None


def share_interval(share: float, count: int, seed: int = 0) -> list[float]:
    """The interval of a share of crystals.

    The number of crystals with a property among `count` that are drawn with replacement has a
    binomial distribution, so no crystal has to be drawn. A share of 0 or 1 has an interval without
    width, whatever the number of crystals: none of the resamples differs.

    Args:
        share: fraction of the crystals, 0 to 1.
        count: of the crystals that it is a fraction of, at least 1.
        seed: random seed.

    Returns:
        Its lower and its upper limit.
    """
    drawn = np.random.default_rng(seed).binomial(count, share, _SHARE_RESAMPLES)
    return _limits(drawn / count)


def mean_interval(values: Sequence[float] | np.ndarray, seed: int = 0) -> list[float]:
    """The interval of the mean of values, (n,) with n of at least 1, as `share_interval` has it."""
    given = np.asarray(values, dtype=float)
    random = np.random.default_rng(seed)
    means: list[np.ndarray] = []
    size = max(1, _MAX_DRAWN // len(given))
    for start in range(0, _MEAN_RESAMPLES, size):
        shape = (min(size, _MEAN_RESAMPLES - start), len(given))
        means.append(given[random.integers(len(given), size=shape)].mean(axis=1))
    return _limits(np.concatenate(means))


def with_intervals(
    figures: Mapping[str, Any], counts: Mapping[str, int], seed: int = 0
) -> dict[str, Any]:
    """The figures, with `NAME_interval` after each share that `counts` names.

    Args:
        figures: by name. A share that is None or NaN has the interval None.
        counts: for each share, the number of crystals that it is a fraction of.
        seed: random seed.
    """
    result: dict[str, Any] = {}
    for name, value in figures.items():
        result[name] = value
        if name in counts:
            known = value is not None and value == value and counts[name] > 0
            interval = share_interval(value, counts[name], seed) if known else None
            result[interval_name(name)] = interval
    return result


def interval_name(name: str) -> str:
    """The key of the interval of a figure."""
    return f"{name}_interval"


def half_width(interval: Sequence[float] | None) -> float | None:
    """Half the width of an interval, for `±`."""
    return None if interval is None else (interval[1] - interval[0]) / 2


def _limits(values: np.ndarray) -> list[float]:
    tail = (1 - CONFIDENCE) / 2
    return np.quantile(values, [tail, 1 - tail]).tolist()
