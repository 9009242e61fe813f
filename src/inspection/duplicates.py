"""Crystals that a data set holds more than once, within a split and across splits.

Two crystals are taken for one if pymatgen's StructureMatcher says so. It is asked only about pairs
of one composition with as many atoms in their primitive cells, since no others match. Where those
are too many (all of Carbon-24 is carbon), the likeliest are compared first, and what was left out
is counted.

This module does not import torch: worker processes that use it start quickly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from rich.progress import Progress
from scipy.spatial.distance import cdist

from src.inspection.analysis import LoadStructures, chunks, map_structures, neighbor_distances
from src.metrics.matching import PYMATGEN, MatcherPool, MatcherSettings, PairResult

_NUM_NEIGHBORS = 32  # in a fingerprint
_MAX_ROWS = 256  # of a matrix of distances, to bound the memory


@dataclass(frozen=True, slots=True, eq=False)
class ReducedCrystal:
    """A crystal in the cell that StructureMatcher compares, the primitive one of the Niggli cell.

    Attributes:
        lattice, atom_types, frac_coords: (3, 3) Å, (n,), (n, 3).
        fingerprint: (32,) mean distance of an atom to its k-th neighbour over (V/N)^(1/3), no unit.
            It depends neither on the cell nor, as the matcher, on the volume (average minimum
            distances: Widdowson et al., MATCH 87, 529 (2022)).
    """

    lattice: np.ndarray
    atom_types: np.ndarray
    frac_coords: np.ndarray
    fingerprint: np.ndarray

    def to_structure(self) -> Structure:
        return Structure(Lattice(self.lattice), self.atom_types.tolist(), self.frac_coords)


def reduce_crystal(structure: Structure, *_: object) -> ReducedCrystal:
    """A crystal as it is compared; this takes several times as long as to compare it."""
    cell = structure.get_reduced_structure(reduction_algo="niggli").get_primitive_structure()
    distances = neighbor_distances(cell, _NUM_NEIGHBORS).mean(axis=0)
    return ReducedCrystal(
        cell.lattice.matrix,
        np.array(cell.atomic_numbers, dtype=np.uint8),
        cell.frac_coords,
        distances / (cell.volume / len(cell)) ** (1 / 3),
    )


class _ReducedMatcher(StructureMatcher):
    """A matcher for cells that are reduced already."""

    @classmethod
    def _get_reduced_structure(cls, struct, primitive_cell=True, niggli=True):
        return struct.copy()  # which it then scales


def reduced_rms_distance(
    prediction: Structure, target: Structure, settings: MatcherSettings
) -> float | None:
    """`src.metrics.matching.rms_distance` of two cells that `reduce_crystal` gave."""
    match = _ReducedMatcher(
        stol=settings.stol, ltol=settings.ltol, angle_tol=settings.angle_tol
    ).get_rms_dist(prediction, target)
    return None if match is None else float(match[0])


@dataclass(slots=True, eq=False)
class DuplicateSearch:
    """Whether a crystal is one of those of a split that come before it.

    Attributes:
        crystal: its index.
        split: number of the split that is searched, its own or an earlier one.
        before: indices of the crystals there that it could match, ascending.
        nearest: those that it is compared with, nearest by fingerprint first, until one matches.
        match: the one that does, if any.
        rms: of that match, over (V/N)^(1/3).
        num_unanswered: comparisons that the matcher gave no answer on.
        is_checked: compared with all, as one of those drawn to see what the others may miss.
    """

    crystal: int
    split: int
    before: np.ndarray
    nearest: np.ndarray
    match: int | None = None
    rms: float | None = None
    num_unanswered: int = 0
    is_checked: bool = False

    @property
    def is_cut_short(self) -> bool:
        """Whether it found nothing, and did not look at all that it could have matched."""
        return self.match is None and not self.is_checked and len(self.nearest) < len(self.before)


@dataclass(slots=True)
class Duplicates:
    """What `find_duplicates` found.

    Attributes:
        searches: those that had something to compare with, by crystal and split.
        not_reduced: indices of crystals that have no reduced cell (out of time, crash or error) and
            were compared with none.
        num_comparisons, num_unanswered: pairs, and those of them without an answer, which are
            taken for no match.
        num_checked, num_found_by_check: of the searches that were cut short some are drawn and
            completed; so many, and with so many matches.
    """

    searches: list[DuplicateSearch] = field(default_factory=list)
    not_reduced: list[int] = field(default_factory=list)
    num_comparisons: int = 0
    num_unanswered: int = 0
    num_checked: int = 0
    num_found_by_check: int = 0


def find_duplicates(
    compositions: Sequence[Hashable],
    splits: np.ndarray,
    load: LoadStructures,
    *,
    asked: np.ndarray | None = None,
    settings: MatcherSettings = PYMATGEN,
    max_compared: int = 20,
    max_check: int = 20_000,
    seed: int = 0,
    num_workers: int | None = None,
    timeout: float = 10.0,
    progress: bool = False,
) -> Duplicates:
    """Search, for each crystal, each split up to its own for a crystal before it that matches.

    So each pair is looked at once, and the crystals of a split that match an earlier one of the
    same are those that are too many there.

    Args:
        compositions: of each crystal; equal for those that can match.
        splits: (n,) number of each crystal's split, ascending.
        asked: (n,) bool, the crystals that are searched for; None for all.
        settings: StructureMatcher's. It scales volumes to be equal.
        max_compared: largest number of comparisons in one search. A crystal that could match more
            is compared with the nearest by fingerprint.
        max_check: comparisons that are spent, after that, on completing some of the searches that
            were cut short, drawn at random.
        seed: of that draw.
        num_workers, timeout: see `MatcherPool`.
    """
    asked = np.ones(len(splits), dtype=bool) if asked is None else asked
    found = Duplicates()
    members = [i for group in _groups(dict(enumerate(compositions)), asked) for i in group]
    title = "reduced cells" if progress else None
    reduced = dict(
        zip(
            members,
            map_structures(reduce_crystal, load, members, num_workers, timeout, title),
            strict=True,
        )
    )
    found.not_reduced = [i for i, cell in reduced.items() if cell is None]
    keys = {
        i: (compositions[i], len(cell.atom_types))
        for i, cell in sorted(reduced.items())
        if cell is not None
    }
    for group in _groups(keys, asked):
        found.searches += _searches(group, reduced, splits, asked, max_compared)

    with (
        MatcherPool(num_workers, timeout=timeout, matcher=reduced_rms_distance) as pool,
        Progress(disable=not progress) as bar,
    ):

        def compare(pairs: list[tuple[DuplicateSearch, int]]) -> None:
            for part in chunks(pairs):
                needed = {i for search, other in part for i in (search.crystal, other)}
                cells = {i: reduced[i].to_structure() for i in needed}
                results = pool.match(
                    [cells[other] for _, other in part],
                    [cells[search.crystal] for search, _ in part],
                    settings,
                )
                for (search, other), result in zip(part, results, strict=True):
                    found.num_comparisons += 1
                    found.num_unanswered += _note(search, other, result)
                bar.update(task, advance=len(part))

        task = bar.add_task("duplicates", total=sum(len(s.nearest) for s in found.searches))
        for rank in range(max_compared):
            waiting = [s for s in found.searches if s.match is None and rank < len(s.nearest)]
            if not waiting:
                break
            compare([(search, search.nearest[rank]) for search in waiting])
        bar.update(task, completed=bar.tasks[task].total)

        drawn = _draw([s for s in found.searches if s.is_cut_short], max_check, seed)
        rest = [(s, int(i)) for s in drawn for i in np.setdiff1d(s.before, s.nearest)]
        task = bar.add_task("check", total=len(rest), visible=bool(rest))
        compare(rest)
    for search in drawn:
        search.is_checked = True
    found.searches.sort(key=lambda search: (search.crystal, search.split))
    found.num_checked = len(drawn)
    found.num_found_by_check = sum(search.match is not None for search in drawn)
    return found


def _groups(keys: Mapping[int, Hashable], asked: np.ndarray) -> list[list[int]]:
    """Indices (ascending, as in `keys`) of one key, where one is asked for that has one before."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in keys.items():
        groups[key].append(index)
    return [group for group in groups.values() if asked[group[1:]].any()]


def _searches(
    group: list[int],
    reduced: dict[int, ReducedCrystal],
    splits: np.ndarray,
    asked: np.ndarray,
    max_compared: int,
) -> list[DuplicateSearch]:
    indices = np.array(group)
    fingerprints = np.stack([reduced[i].fingerprint for i in group])
    searches = []
    for split in np.unique(splits[indices]):
        theirs = np.flatnonzero(splits[indices] == split)
        block = indices[theirs]
        rows = np.flatnonzero(asked[indices] & (indices > block[0]))
        for part in chunks(rows, _MAX_ROWS):
            distances = cdist(fingerprints[part], fingerprints[theirs])
            nums = np.searchsorted(block, indices[part])  # of those that come before
            for row, num, distance in zip(part, nums, distances, strict=True):
                nearest = block[distance[:num].argsort(kind="stable")[:max_compared]]
                searches.append(
                    DuplicateSearch(int(indices[row]), int(split), block[:num], nearest)
                )
    return searches


def _note(search: DuplicateSearch, other: int, result: PairResult) -> bool:
    """Write a result down; whether it is no answer."""
    if result.rms is not None and (search.rms is None or result.rms < search.rms):
        search.match, search.rms = int(other), result.rms
    is_unanswered = result.status not in ("matched", "unmatched")
    search.num_unanswered += is_unanswered
    return is_unanswered


def _draw(
    searches: list[DuplicateSearch], max_comparisons: int, seed: int
) -> list[DuplicateSearch]:
    """As many as can be completed, in random order."""
    drawn = []
    for index in np.random.default_rng(seed).permutation(len(searches)):
        max_comparisons -= len(searches[index].before) - len(searches[index].nearest)
        if max_comparisons < 0:
            break
        drawn.append(searches[index])
    return drawn
