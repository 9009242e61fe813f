"""Find space groups and shortest distances of many crystals in worker processes.

This module imports neither torch nor pymatgen, so that worker processes start quickly.
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

_CHUNK = 4096  # crystals or pairs held in memory as structures at a time

Indices = Sequence[int] | np.ndarray
LoadStructures = Callable[[Indices], "list[Structure]"]
"""Returns the crystals at the given indices, in that order."""


class CrystalAnalysis(NamedTuple):
    """Space group and shortest distance of one crystal.

    Attributes:
        space_group: number, 1 to 230; None if spglib finds none.
        min_distance: shortest distance between two atoms in Å, including periodic images.
    """

    space_group: int | None
    min_distance: float


def analyze_crystal(structure: Structure, *_: object, symprec: float = SYMPREC) -> CrystalAnalysis:
    """Analyze one crystal; `symprec` is the tolerance of the space group on positions in Å."""
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
    """Analyze the crystals at the given indices in worker processes.

    Args:
        load: returns the crystals at given indices.
        indices: the crystals to analyze.
        symprec: tolerance of the space group on positions in Å.
        num_workers: see `MatcherPool`.
        timeout: time limit in seconds for one crystal.
        progress: show a progress bar.

    Returns:
        The results in the order of `indices`; None for a crystal that exceeds the time limit, fails
        or crashes its worker.
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
    """Apply a function to crystals in worker processes that are killed when they hang.

    Args:
        function: called with a structure and two more arguments that it can ignore; it has to meet
            the requirements for `MatcherPool`'s `matcher`.
        load: returns the crystals at given indices.
        indices: the crystals to apply the function to.
        num_workers, timeout: see `MatcherPool`.
        progress: title of the progress bar; None for no bar.

    Returns:
        The results in the order of `indices`; None for a crystal without a result.
    """
    # MatcherPool runs any function on pairs: here on each crystal paired with itself.
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


def chunks(items: Sequence[Any] | np.ndarray, size: int = _CHUNK) -> list[Any]:
    """Split a sequence into pieces of at most `size` items."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def neighbor_distances(structure: Structure, num: int) -> np.ndarray:
    """Distances in Å from each of n atoms to its `num` nearest neighbors, nearest first: (n, num).

    Periodic images count as neighbors, including those of the atom itself.
    """
    # a sphere that contains 1.5 times as many atoms at the mean density
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
