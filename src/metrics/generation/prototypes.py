"""Find out whether a crystal has the structure of a known one, whatever its elements are.

Crystals are compared as `StructureMatcher.get_rms_anonymous` does: each assignment of the elements
of one to those of the other that keeps the formula is tried. The project's own matcher judges.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice, permutations, product

import numpy as np
from pymatgen.core import Structure

from src.data.crystal import Crystal
from src.metrics.matching import PYMATGEN, FastMatcher, MatcherSettings
from src.metrics.structure_matching.crystals import PreparedCrystals

MAX_ASSIGNMENTS = 120
"""Of elements, that are tried; more only if six or more elements have equal shares."""


def has_known_prototype(
    crystals: Sequence[Structure],
    references: Sequence[Structure],
    matcher: FastMatcher,
    settings: MatcherSettings = PYMATGEN,
    progress: bool = False,
) -> list[bool]:
    """For each crystal, whether it matches a reference irrespective of elements.

    Args:
        crystals, references: ordered crystals.
        matcher, settings: see `FastMatcher.first_match`. Cells are scaled to the same volume, so
            the sizes of atoms do not count. Pairs without a result count as not matching.
        progress: show progress bars.
    """
    kinds = {_anonymous_formula(crystal) for crystal in crystals}
    same = [s for s in references if _anonymous_formula(s) in kinds]
    known = PreparedCrystals([next(anonymized(structure)) for structure in same])
    found = [False] * len(crystals)
    title: bool | str = progress and "prototypes"
    waiting = {i: islice(anonymized(s), MAX_ASSIGNMENTS) for i, s in enumerate(crystals)}
    while waiting:  # a round for each assignment, of those that have no match yet
        asked = {i: one for i, rest in waiting.items() if (one := next(rest, None)) is not None}
        if not asked:
            break
        matches = matcher.first_match(list(asked.values()), known, settings, progress=title)
        title = False  # later rounds are short
        for i, match in zip(asked, matches, strict=True):
            found[i] = match.reference is not None
        waiting = {i: waiting[i] for i in asked if not found[i]}
    return found


def anonymized(structure: Structure) -> Iterator[Crystal]:
    """The crystal with its elements replaced by 1, 2, ..., the rarest first.

    Yields:
        One crystal for each order of elements that occur equally often.
    """
    numbers = np.array(structure.atomic_numbers)
    elements, places, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    ties = defaultdict(list)
    for k, count in enumerate(counts.tolist()):
        ties[count].append(k)
    for orders in product(*(permutations(ties[count]) for count in sorted(ties))):
        ranks = np.empty(len(elements), dtype=np.int64)
        ranks[[k for order in orders for k in order]] = np.arange(1, len(elements) + 1)
        yield Crystal(structure.lattice.matrix, ranks[places], structure.frac_coords)


def _anonymous_formula(structure: Structure) -> tuple[int, ...]:
    """The numbers of atoms without common factor, in ascending order: 1, 1, 3 for a perovskite."""
    counts = np.unique(structure.atomic_numbers, return_counts=True)[1].tolist()
    divisor = math.gcd(*counts)
    return tuple(sorted(count // divisor for count in counts))
