"""Find crystals that occur more than once in a data set, within and across splits.

Two crystals are duplicates if pymatgen's StructureMatcher, or ours with its verdict, matches them.
Only pairs with the same composition and the same number of atoms in the primitive cell are
compared, since no others can match. If there are too many such pairs (all of Carbon-24 is carbon),
only the likeliest are compared, and the searches that this cuts short are counted.

This module does not import torch, so that worker processes start quickly.
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

from src.data.crystal import Crystal
from src.inspection.analysis import LoadStructures, chunks, map_structures, neighbor_distances
from src.metrics import PreparedCrystals
from src.metrics.matching import (
    PYMATGEN,
    AnyMatcher,
    FastMatcher,
    MatcherPool,
    MatcherSettings,
    PairResult,
    open_matcher,
)

_NUM_NEIGHBORS = 32  # in a fingerprint
_MAX_ROWS = 256  # rows of a distance matrix computed at once, to limit memory use


@dataclass(frozen=True, slots=True, eq=False)
class ReducedCrystal:
    """A crystal in the cell that StructureMatcher compares: the primitive cell of the Niggli cell.

    Attributes:
        lattice, atom_types, frac_coords: (3, 3) Å, (n,), (n, 3).
        fingerprint: (32,) mean distance from an atom to its k-th neighbor, divided by (V/N)^(1/3)
            (dimensionless). Like the matcher, it depends neither on the choice of cell nor on the
            volume (average minimum distances: Widdowson et al., MATCH 87, 529 (2022)).
    """

    lattice: np.ndarray
    atom_types: np.ndarray
    frac_coords: np.ndarray
    fingerprint: np.ndarray

    def to_structure(self) -> Structure:
        return Structure(Lattice(self.lattice), self.atom_types.tolist(), self.frac_coords)


def reduce_crystal(structure: Structure, *_: object) -> ReducedCrystal:
    """Reduce a crystal once for all comparisons; reducing takes longer than comparing."""
    cell = structure.get_reduced_structure(reduction_algo="niggli").get_primitive_structure()
    distances = neighbor_distances(cell, _NUM_NEIGHBORS).mean(axis=0)
    return ReducedCrystal(
        cell.lattice.matrix,
        np.array(cell.atomic_numbers, dtype=np.uint8),
        cell.frac_coords,
        distances / (cell.volume / len(cell)) ** (1 / 3),
    )


class _ReducedMatcher(StructureMatcher):
    """A matcher for cells that are already reduced."""

    @classmethod
    def _get_reduced_structure(cls, struct, primitive_cell=True, niggli=True):
        return struct.copy()  # the matcher scales its copy


def reduced_rms_distance(
    prediction: Structure, target: Structure, settings: MatcherSettings
) -> float | None:
    """Like `src.metrics.matching.rms_distance`, for crystals reduced by `reduce_crystal`."""
    match = _ReducedMatcher(
        stol=settings.stol, ltol=settings.ltol, angle_tol=settings.angle_tol
    ).get_rms_dist(prediction, target)
    return None if match is None else float(match[0])


@dataclass(slots=True, eq=False)
class DuplicateSearch:
    """The search of one split for an earlier crystal that a given crystal matches.

    Attributes:
        crystal: index of the crystal.
        split: number of the searched split, the crystal's own or an earlier one.
        candidates: indices of the earlier crystals in the split that it could match, ascending.
        nearest: the candidates that it is compared with, by fingerprint distance, until one
            matches.
        match: index of the match, if any.
        rms: rms displacement of the match, divided by (V/N)^(1/3).
        num_unanswered: number of comparisons without a result.
        is_checked: whether it was drawn for the check and compared with all candidates.
    """

    crystal: int
    split: int
    candidates: np.ndarray
    nearest: np.ndarray
    match: int | None = None
    rms: float | None = None
    num_unanswered: int = 0
    is_checked: bool = False

    @property
    def is_cut_short(self) -> bool:
        """Whether it found no match without comparing all candidates."""
        is_complete = self.is_checked or len(self.nearest) == len(self.candidates)
        return self.match is None and not is_complete


@dataclass(slots=True)
class Duplicates:
    """The result of `find_duplicates`.

    Attributes:
        searches: the searches that had any candidates, ordered by crystal and split.
        not_reduced: indices of crystals that could not be reduced (timeout, crash or error) and
            were not compared.
        num_comparisons, num_unanswered: number of compared pairs, and of those without a result,
            which count as not matching.
        num_checked, num_found_by_check: number of cut-short searches that were drawn and completed,
            and the number of matches found by that.
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
    selected: np.ndarray | None = None,
    settings: MatcherSettings = PYMATGEN,
    max_compared: int = 20,
    max_check: int = 20_000,
    seed: int = 0,
    matcher: str = "fast",
    num_workers: int | None = None,
    timeout: float = 10.0,
    progress: bool = False,
) -> Duplicates:
    """For each crystal, search its own and each earlier split for an earlier crystal that matches.

    Each pair is compared at most once. The number of crystals that match an earlier one in their
    own split is the number that deduplication would remove from it.

    Args:
        compositions: a key for the composition of each crystal; crystals with different keys are
            not compared.
        splits: (n,) number of each crystal's split, ascending.
        load: returns the crystals at given indices.
        selected: (n,) bool, the crystals to search duplicates of; None for all.
        settings: tolerances of the matcher, which scales both crystals to the same volume.
        max_compared: largest number of comparisons in one search. A crystal with more candidates is
            compared with the nearest ones by fingerprint.
        max_check: number of additional comparisons for completing randomly drawn searches that were
            cut short, to estimate how many matches were missed.
        seed: seed for drawing these searches.
        matcher, num_workers, timeout: see `open_matcher`.
        progress: show progress bars.
    """
    opened: AnyMatcher = open_matcher(matcher, num_workers, timeout)  # starts no process yet
    if isinstance(opened, MatcherPool):
        opened = MatcherPool(num_workers, timeout=timeout, matcher=reduced_rms_distance)
    selected = np.ones(len(splits), dtype=bool) if selected is None else selected
    found = Duplicates()
    members = [i for group in _groups(dict(enumerate(compositions)), selected) for i in group]
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
    for group in _groups(keys, selected):
        found.searches += _searches(group, reduced, splits, selected, max_compared)

    judge = _Judge(opened, {i: cell for i, cell in reduced.items() if cell is not None}, settings)
    with opened, Progress(disable=not progress) as bar:

        def compare(pairs: list[tuple[DuplicateSearch, int]]) -> None:
            for part in chunks(pairs):
                results = judge([(search.crystal, int(other)) for search, other in part])
                for (search, other), result in zip(part, results, strict=True):
                    found.num_comparisons += 1
                    found.num_unanswered += _record(search, other, result)
                bar.update(task, advance=len(part))

        task = bar.add_task("duplicates", total=sum(len(s.nearest) for s in found.searches))
        for rank in range(max_compared):
            waiting = [s for s in found.searches if s.match is None and rank < len(s.nearest)]
            if not waiting:
                break
            compare([(search, search.nearest[rank]) for search in waiting])
        bar.update(task, completed=bar.tasks[task].total)

        drawn = _draw_searches([s for s in found.searches if s.is_cut_short], max_check, seed)
        rest = [(s, int(i)) for s in drawn for i in np.setdiff1d(s.candidates, s.nearest)]
        task = bar.add_task("check", total=len(rest), visible=bool(rest))
        compare(rest)
    for search in drawn:
        search.is_checked = True
    found.searches.sort(key=lambda search: (search.crystal, search.split))
    found.num_checked = len(drawn)
    found.num_found_by_check = sum(search.match is not None for search in drawn)
    return found


class _Judge:
    """Matches pairs of reduced crystals, given by their indices."""

    def __init__(
        self, matcher: AnyMatcher, reduced: Mapping[int, ReducedCrystal], settings: MatcherSettings
    ) -> None:
        self._matcher, self._reduced, self._settings = matcher, reduced, settings
        self._places = {index: place for place, index in enumerate(reduced)}
        if isinstance(matcher, FastMatcher):
            self._prepared = PreparedCrystals(
                [
                    Crystal(cell.lattice, cell.atom_types, cell.frac_coords)
                    for cell in reduced.values()
                ]
            )

    def __call__(self, pairs: Sequence[tuple[int, int]]) -> list[PairResult]:
        if isinstance(self._matcher, FastMatcher):
            places = [(self._places[i], self._places[j]) for i, j in pairs]
            return self._matcher.match(self._prepared, self._prepared, self._settings, pairs=places)
        cells = {i: self._reduced[i].to_structure() for pair in pairs for i in pair}
        return self._matcher.match(
            [cells[j] for _, j in pairs], [cells[i] for i, _ in pairs], self._settings
        )


def _groups(keys: Mapping[int, Hashable], selected: np.ndarray) -> list[list[int]]:
    """Group indices by key; groups in which no selected crystal has an earlier one are left out."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in keys.items():
        groups[key].append(index)
    return [group for group in groups.values() if selected[group[1:]].any()]


def _searches(
    group: list[int],
    reduced: dict[int, ReducedCrystal],
    splits: np.ndarray,
    selected: np.ndarray,
    max_compared: int,
) -> list[DuplicateSearch]:
    indices = np.array(group)
    fingerprints = np.stack([reduced[i].fingerprint for i in group])
    searches = []
    for split in np.unique(splits[indices]):
        in_split = np.flatnonzero(splits[indices] == split)
        targets = indices[in_split]
        rows = np.flatnonzero(selected[indices] & (indices > targets[0]))
        for part in chunks(rows, _MAX_ROWS):
            distances = cdist(fingerprints[part], fingerprints[in_split])
            num_earlier = np.searchsorted(targets, indices[part])
            for row, num, distance in zip(part, num_earlier, distances, strict=True):
                nearest = targets[distance[:num].argsort(kind="stable")[:max_compared]]
                searches.append(
                    DuplicateSearch(int(indices[row]), int(split), targets[:num], nearest)
                )
    return searches


def _record(search: DuplicateSearch, other: int, result: PairResult) -> bool:
    """Add a match result to a search; return whether the comparison had no result."""
    if result.rms is not None and (search.rms is None or result.rms < search.rms):
        search.match, search.rms = int(other), result.rms
    is_unanswered = result.status not in ("matched", "unmatched")
    search.num_unanswered += is_unanswered
    return is_unanswered


def _draw_searches(
    searches: list[DuplicateSearch], max_comparisons: int, seed: int
) -> list[DuplicateSearch]:
    """Draw as many searches as can be completed with `max_comparisons`."""
    drawn = []
    for index in np.random.default_rng(seed).permutation(len(searches)):
        max_comparisons -= len(searches[index].candidates) - len(searches[index].nearest)
        if max_comparisons < 0:
            break
        drawn.append(searches[index])
    return drawn
