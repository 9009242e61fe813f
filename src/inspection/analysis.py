"""What takes a moment to find out about a crystal, for very many of them.

This module imports neither torch nor pymatgen: worker processes that use it start quickly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from rich.progress import Progress

from src.metrics.matching import Matcher, MatcherPool
from src.metrics.space_groups import SYMPREC, space_group

if TYPE_CHECKING:
    from pymatgen.core import Structure

_PART = 4096  # crystals, or pairs, in memory as structures at a time

Indices = Sequence[int] | np.ndarray
LoadStructures = Callable[[Indices], "list[Structure]"]
"""Gives the crystals at some indices, in their order."""


class CrystalAnalysis(NamedTuple):
    """What is seen of one crystal.

    Attributes:
        space_group: 1 to 230; None where spglib finds none.
        min_distance: the smallest between two atoms in Å, periodic images included.
    """

    space_group: int | None
    min_distance: float


def analyze_crystal(structure: Structure, *_: object, symprec: float = SYMPREC) -> CrystalAnalysis:
    """What is seen of one crystal, with a tolerance on positions of `symprec` in Å."""
    found = space_group(structure, symprec)
    number = None if found is None else found.number
    return CrystalAnalysis(number, float(neighbor_distances(structure, 1).min()))


def analyze_crystals(
    load: LoadStructures,
    indices: Indices,
    *,
    symprec: float = SYMPREC,
    num_workers: int | None = None,
    timeout: float = 10.0,
    progress: bool = False,
) -> list[CrystalAnalysis | None]:
    """What is seen of crystals; None of one that exceeds `timeout` (s) or ends its process.

    Args:
        num_workers: see `MatcherPool`.
    """
    function = partial(analyze_crystal, symprec=symprec)
    return map_structures(
        function, load, indices, num_workers, timeout, "symmetry" if progress else None
    )


def map_structures(
    function: Callable[..., Any],
    load: LoadStructures,
    indices: Indices,
    num_workers: int | None,
    timeout: float,
    progress: str | None = None,
) -> list[Any]:
    """What a function says of each crystal, in worker processes that can be killed.

    A `MatcherPool` does the work: it runs any function on pairs, here of a crystal with itself.

    Args:
        function: called with a structure and two more arguments, under the conditions of
            `MatcherPool`'s matcher.
        progress: a title to show progress under.

    Returns:
        Its results, in order; None for a crystal that it gave none on.
    """
    found: list[Any] = []
    with (
        MatcherPool(num_workers, timeout=timeout, matcher=cast(Matcher, function)) as pool,
        Progress(disable=progress is None) as bar,
    ):
        task = bar.add_task(progress or "", total=len(indices))
        for part in chunks(indices, 1024):
            structures = load(part)
            found += [result.rms for result in pool.match(structures, structures)]
            bar.advance(task, len(part))
    return found


def chunks(items: Sequence[Any] | np.ndarray, size: int = _PART) -> list[Any]:
    """A sequence in pieces of at most `size`."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def neighbor_distances(structure: Structure, num: int) -> np.ndarray:
    """(n, num) distances in Å from each of n atoms to its nearest neighbours, nearest first.

    Periodic images are neighbours, an atom's own among them.
    """
    # a sphere that holds as many atoms at the mean density, and half as much again
    radius = (3 * 1.5 * (num + 1) * structure.volume / len(structure) / (4 * math.pi)) ** (1 / 3)
    while True:
        atom, _, _, distance = structure.get_neighbor_list(radius, exclude_self=True)
        counts = np.bincount(atom, minlength=len(structure))
        if counts.min() >= num:
            break
        radius *= 1.3
    order = np.lexsort((distance, atom))
    first = np.cumsum(counts) - counts
    return distance[order][first[:, None] + np.arange(num)]
