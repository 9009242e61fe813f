"""Find which crystals of a set match others: known ones, or each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import permutations
from typing import Any

from pymatgen.core import Structure
from rich.progress import Progress

from src.metrics import PreparedCrystals
from src.metrics.matching import PYMATGEN, AnyMatcher, FastMatcher, MatcherSettings
from src.utils.formulas import reduced_formula

MAX_GROUP_PAIRS = 10**6  # of crystals with one formula, in both directions


def first_matches(
    crystals: Sequence[Structure] | PreparedCrystals,
    references: Sequence[Structure] | None,
    matcher: AnyMatcher,
    settings: MatcherSettings = PYMATGEN,
    progress: bool = False,
) -> tuple[list[int | None], Counter[int]]:
    """Find the first reference that each crystal matches.

    Only crystals with the same reduced formula are compared. If all have the same formula (as in a
    set of carbon crystals), every crystal may be compared with every reference.

    Args:
        crystals: `PreparedCrystals` save time with a `FastMatcher`.
        references: None to compare the crystals among themselves: each crystal is then compared
            with the earlier crystals that have no match themselves.

    Returns:
        For each crystal, the index of its match or None; and, by the index of the crystal, the
        number of pairs for which the matcher returned no result.
    """
    if isinstance(matcher, FastMatcher):
        found = matcher.first_match(crystals, references, settings, progress=progress)
        counts = {i: len(each.undecided) for i, each in enumerate(found) if each.undecided}
        return [each.reference for each in found], Counter(counts)
    assert not isinstance(crystals, PreparedCrystals), "which are FastMatcher's"
    others = crystals if references is None else references
    waiting = _by_formula(crystals)
    queues = waiting if references is None else _by_formula(references)
    matches: list[int | None] = [None] * len(crystals)
    unanswered: Counter[int] = Counter()
    with Progress(disable=not progress) as bar:
        task = bar.add_task("uniqueness" if references is None else "novelty", total=len(crystals))
        while True:
            # In each round, all crystals still without a match are compared with the next target
            # of their formula.
            pairs = []
            for formula, members in waiting.items():
                if queue := queues.get(formula):
                    target = queue.pop(0)  # removes it from members too if references is None
                    pairs += [(member, target) for member in members]
                else:
                    members.clear()
            if not any(waiting.values()):
                break
            results = matcher.match(
                [others[target] for _, target in pairs],
                [crystals[member] for member, _ in pairs],
                settings,
            )
            for (member, target), result in zip(pairs, results, strict=True):
                if result.matched:
                    matches[member] = target
                elif result.status != "unmatched":
                    unanswered[member] += 1
            for members in waiting.values():
                members[:] = [member for member in members if matches[member] is None]
            bar.update(task, completed=len(crystals) - sum(map(len, waiting.values())))
        bar.update(task, completed=len(crystals))
    return matches, unanswered


def connected_groups(
    crystals: Sequence[Structure] | PreparedCrystals,
    formulas: Sequence[str],
    matcher: AnyMatcher,
    settings: MatcherSettings = PYMATGEN,
    matches: Sequence[int | None] = (),
    progress: bool = False,
) -> list[int] | None:
    """Groups of crystals that matches connect, directly or through others.

    They do not depend on the order of the crystals: each pair with the same formula is compared in
    both directions, since matching is neither symmetric nor transitive.

    Args:
        crystals: as for `first_matches`.
        formulas: the reduced formula of each.
        matches: for each crystal, another that it is known to match, or None.

    Returns:
        For each crystal, the smallest index in its group; None if there are more than
        `MAX_GROUP_PAIRS` pairs to compare.
    """
    group = list(range(len(formulas)))

    def first_of(i: int) -> int:
        while group[i] != i:
            i = group[i]
        return i

    def connect(i: int, j: int) -> None:
        one, other = sorted((first_of(i), first_of(j)))
        group[other] = one

    for i, match in enumerate(matches):
        if match is not None:
            connect(i, match)
    members: dict[str, list[int]] = {}
    for i, formula in enumerate(formulas):
        members.setdefault(formula, []).append(i)
    if sum(len(each) * (len(each) - 1) for each in members.values()) > MAX_GROUP_PAIRS:
        return None
    pairs = [
        pair
        for each in members.values()
        for pair in permutations(each, 2)
        if first_of(pair[0]) != first_of(pair[1])
    ]
    if pairs:
        either: Any = crystals  # each matcher takes its own kind
        title = progress and "groups"
        results = matcher.match(either, either, settings, pairs=pairs, progress=title)
        for (i, j), result in zip(pairs, results, strict=True):
            if result.matched:
                connect(i, j)
    return [first_of(i) for i in range(len(formulas))]


def _by_formula(structures: Sequence[Structure]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for index, structure in enumerate(structures):
        groups.setdefault(reduced_formula(structure.composition), []).append(index)
    return groups
