"""Lists of different lengths in one flat array, and small linear algebra on stacks."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

# what the entries are; NumPy's own types are too narrow for the results of its functions
Floats = NDArray[Any]
Integers = NDArray[Any]
Booleans = NDArray[Any]


def ragged(counts: Integers) -> tuple[Integers, Integers]:
    """For lists that lie behind one another: the list of each entry, and its place in that list.

    Args:
        counts: (L,) entries of each list.

    Returns:
        Two arrays of `counts.sum()`.
    """
    owner = np.repeat(np.arange(len(counts)), counts)
    starts = np.cumsum(counts) - counts
    return owner, np.arange(len(owner)) - starts[owner]


def dot(a: Floats, b: Floats) -> Floats:
    """Scalar products of the vectors in two stacks (N, 3), rounded as `np.dot` of two vectors."""
    return np.matmul(a[:, None, :], b[:, :, None])[:, 0, 0]


def rows_times(rows: Floats, matrices: Floats) -> Floats:
    """Each row (N, 3) times its matrix (N, 3, 3), or all times one (3, 3), rounded as `np.dot`."""
    return np.matmul(rows[:, None, :], matrices)[:, 0, :]


def lists_times(rows: Floats, counts: Integers, matrices: Floats) -> Floats:
    """Lists of rows, each list times its matrix, rounded as `np.dot`.

    Args:
        rows: (R, 3), the lists behind one another.
        counts: (L,) rows of each list.
        matrices: (L, 3, 3).
    """
    result = np.empty_like(rows)
    starts = np.cumsum(counts) - counts
    for count in np.unique(counts):
        lists = np.flatnonzero(counts == count)
        at = starts[lists, None] + np.arange(count)
        result[at] = np.matmul(rows[at], matrices[lists])
    return result


def slices(work: Floats, limit: float) -> Iterator[slice]:
    """Slices whose work together stays under the limit, or that hold one."""
    start, total = 0, 0.0
    for i, amount in enumerate(work.tolist()):
        if i > start and not total + amount <= limit:
            yield slice(start, i)
            start, total = i, 0.0
        total += amount
    yield slice(start, len(work))
