"""Which atom of one crystal belongs to which of the other: the least sum of squared distances."""

import itertools

import numpy as np

from src.metrics.structure_matching.arrays import Booleans, Floats, Integers
from src.metrics.structure_matching.distances import images_of
from src.metrics.structure_matching.pairs import Pair

FORBIDDEN = 1e20
"""Å^2, pymatgen's distance of what may not be assigned."""

TIE = 1e-8
"""Å^2: distances as close as this may be one distance, rounded."""

_MAX_BRUTE = 4  # atoms of a kind whose permutations are all tried

_PERMUTATIONS = {
    size: np.array(list(itertools.permutations(range(size)))) for size in range(2, _MAX_BRUTE + 1)
}


def assign_kind(matrix: Floats) -> tuple[Integers, Floats, Booleans]:
    """The choice of columns for which the sum is least.

    Args:
        matrix: (L, M, M).

    Returns:
        Columns (L, M), their sum (L,), and whether another choice may be as good (L,).
    """
    size = matrix.shape[1]
    if size <= _MAX_BRUTE:
        permutations = _PERMUTATIONS[size]
        sums = matrix[:, 0, permutations[:, 0]]
        for k in range(1, size):
            sums += matrix[:, k, permutations[:, k]]
        best = sums.argmin(axis=1)
        total = sums[np.arange(len(sums)), best]
        return permutations[best], total, (sums <= total[:, None] + TIE).sum(axis=1) > 1
    columns = matrix.argmin(axis=2)
    lowest = matrix.min(axis=2)
    total = lowest.sum(axis=1)
    unsure = (matrix <= lowest[:, :, None] + TIE).sum(axis=(1, 2)) > size
    # each atom's nearest is the best choice if no two atoms have the same
    taken = (np.sort(columns, axis=1) != np.arange(size)).any(axis=1)
    if taken.any():
        from scipy.optimize import linear_sum_assignment

        for i in np.flatnonzero(taken):
            row, columns[i] = linear_sum_assignment(matrix[i])
            total[i] = matrix[i, row, columns[i]].sum()
        at = np.flatnonzero(taken & (total < FORBIDDEN / 2))
        unsure[at] = _has_equal(matrix[at], columns[at])
    return columns, total, unsure


def _has_equal(matrix: Floats, columns: Integers) -> Booleans:
    """Whether some rows lose nothing by passing on their columns in a circle, (L,).

    Args:
        matrix: (L, M, M).
        columns: (L, M), for which the sum is least.
    """
    # what row i loses by taking the column of row j, and then by the cheapest detour
    chosen = np.take_along_axis(matrix, columns[:, None, :], axis=2)
    loss = chosen - np.diagonal(chosen, axis1=1, axis2=2)[:, :, None]
    rows = np.arange(matrix.shape[1])
    loss[:, rows, rows] = np.inf
    for k in rows:
        np.minimum(loss, loss[:, :, k, None] + loss[:, None, k, :], out=loss)
    return (loss[:, rows, rows] < TIE).any(axis=1)


def assign_as_pymatgen(
    pair: Pair,
    first: Floats,
    second: Floats,
    start: Floats,
    end: Floats,
    lattice: Floats,
    near: Floats,
) -> Integers:
    """The choice among equally good partners that pymatgen's order of operations makes.

    Args:
        pair: Which has N atoms.
        first, second: (N, 3) fractions of the lattice, of one trial.
        start, end: The same of the second and first crystal in Å.
        lattice, near: As for `_displacements` of `trials`, (3, 3) and (3,).

    Returns:
        Of each atom of the second crystal, its partner among those of the first, (N,).
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = pair.layout.rows, pair.layout.columns
    straight = end[columns] - start[rows]
    candidates = straight[:, None] + images_of(lattice[None])[0]
    x, y, z = candidates[..., 0], candidates[..., 1], candidates[..., 2]
    squares = (x * x + y * y + z * z).min(axis=1)
    between = first[columns] - second[rows]
    squares[(np.abs(between - np.round(between)) > near).any(axis=1)] = FORBIDDEN
    matrix = np.full((len(first), len(first)), FORBIDDEN)
    matrix[pair.second_order[rows], pair.first_order[columns]] = squares
    _, found = linear_sum_assignment(matrix)
    place = np.argsort(pair.first_order)
    return place[found[pair.second_order]]
