"""Test whether two samples of vectors are from the same distribution.

The statistic is the energy distance (Székely and Rizzo, J. Stat. Plan. Inference 143, 1249 (2013)),
which is zero if and only if the distributions are the same, whatever they are. SciPy has it in one
dimension only. Its p-value is that of a permutation test: the share of random divisions of all
vectors into two samples of the same sizes whose distance is at least as large. The division that
was given counts as one of them, so that the p-value is valid for any number of permutations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

PERMUTATIONS = 999  # the smallest p-value is 0.001


@dataclass(frozen=True, slots=True)
class TwoSampleTest:
    """The result of a test.

    Attributes:
        energy_distance: 2 E|X - Y| - E|X - X'| - E|Y - Y'|, over all pairs, those of a vector with
            itself included; at least 0, in the unit of the vectors.
        p_value: how likely a distance is that is at least as large, if both samples are from one
            distribution.
    """

    energy_distance: float
    p_value: float


def energy_test(
    first: np.ndarray, second: np.ndarray, seed: int = 0, permutations: int = PERMUTATIONS
) -> TwoSampleTest:
    """Compare two samples by their energy distance.

    Takes time and memory for all pairs of vectors: 32 MB for twice 1,000 of them.

    Args:
        first, second: (n, d) and (m, d), finite, with n and m of at least 1.
        seed: random seed of the permutations.
        permutations: number of random divisions.

    Raises:
        ValueError: if a sample is empty, if the vectors differ in length, or if one is not finite.
    """
    if first.ndim != 2 or first.shape[1:] != second.shape[1:] or not len(first) or not len(second):
        raise ValueError(
            f"expected (n, d) and (m, d) with n and m of at least 1, not {first.shape} and "
            f"{second.shape}"
        )
    pooled = np.concatenate([first, second]).astype(np.float64)
    if not np.isfinite(pooled).all():
        raise ValueError("a vector is not finite")
    pairs = cdist(pooled, pooled)
    in_first = np.zeros((len(pooled), permutations + 1))
    in_first[: len(first)] = 1
    random = np.random.default_rng(seed)
    in_first[:, 1:] = random.permuted(in_first[:, 1:], axis=0)
    found = _energy_distances(pairs, in_first, len(first))
    # rounding makes equal distances of equal divisions differ
    at_least = int((found[1:] >= found[0] - 1e-12 * pairs.mean()).sum())
    return TwoSampleTest(max(0.0, float(found[0])), (1 + at_least) / (1 + permutations))


def _energy_distances(pairs: np.ndarray, in_first: np.ndarray, count: int) -> np.ndarray:
    """The energy distance of each division.

    Args:
        pairs: (N, N) distances between all vectors.
        in_first: (N, K) 1 where a vector is in the first sample of a division, otherwise 0.
        count: of the vectors in the first sample.

    Returns:
        (K,) one for each division.
    """
    other = len(pairs) - count
    toward_first = pairs @ in_first  # (N, K) sum of the distances to the first sample
    within_first = (in_first * toward_first).sum(axis=0)
    between = toward_first.sum(axis=0) - within_first
    within_second = pairs.sum() - within_first - 2 * between
    return 2 * between / (count * other) - within_first / count**2 - within_second / other**2


def standardized(vectors: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Vectors (n, d) minus the mean of the reference (m, d), over its standard deviation.

    A component that is constant in the reference is only shifted.
    """
    mean, std = reference.mean(axis=0), reference.std(axis=0)
    return (vectors - mean) / np.where(std < 1e-8, 1.0, std)
