"""The public calls: many pairs, the first match of each crystal, all against all.

Verdicts and rms are those of pymatgen's `StructureMatcher`, with its default comparator and
`scale=True`, for ordered crystals.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, overload

import numpy as np
from rich.progress import Progress

from src.metrics.structure_matching.crystals import PreparedCrystals, prepare
from src.metrics.structure_matching.judging import CHUNK, MAX_WORK, Pairs, Task, Workers, judge
from src.metrics.structure_matching.settings import CDVAE, PYMATGEN, MatcherSettings, PairResult
from src.utils.progress import title_of

if TYPE_CHECKING:
    from src.metrics.structure_matching.crystals import AnyCrystals

logger = logging.getLogger(__name__)


@overload
def match(
    predictions: AnyCrystals,
    targets: AnyCrystals,
    settings: MatcherSettings = ...,
    *,
    pairs: Pairs | None = ...,
    max_work: float = ...,
    compiled: bool | None = ...,
    num_workers: int | Workers | None = ...,
    progress: bool | str = ...,
) -> list[PairResult]: ...


@overload
def match(
    predictions: AnyCrystals,
    targets: AnyCrystals,
    settings: Sequence[MatcherSettings],
    *,
    pairs: Pairs | None = ...,
    max_work: float = ...,
    compiled: bool | None = ...,
    num_workers: int | Workers | None = ...,
    progress: bool | str = ...,
) -> list[list[PairResult]]: ...


def match(
    predictions: AnyCrystals,
    targets: AnyCrystals,
    settings: MatcherSettings | Sequence[MatcherSettings] = CDVAE,
    *,
    pairs: Pairs | None = None,
    max_work: float = MAX_WORK,
    compiled: bool | None = None,
    num_workers: int | Workers | None = None,
    progress: bool | str = False,
) -> list[PairResult] | list[list[PairResult]]:
    """Match each prediction with the target at the same place.

    A result is that of `StructureMatcher.get_rms_dist(prediction, target)`; the order matters,
    because pymatgen's matcher is not quite symmetric.

    Args:
        predictions: pymatgen Structures, ASE Atoms, a CrystalBatch, or `PreparedCrystals` of them.
            None for one that could not be built, an `error`.
        targets: The same for the true crystals.
        settings: One, or several, for which crystals are reduced only once.
        pairs: Indices of predictions and targets to match instead.
        max_work: A pair that needs more work is not matched: it is a `timeout`, with a message that
            gives its work. See `MAX_WORK`.
        compiled: Whether loops that Numba compiles do the work, or NumPy's arrays, which give the
            same results. None for Numba's where it can be imported.
        num_workers: Processes to match with; None for one per CPU, if there is so much to do that
            it pays to start them; 0 for this one alone. Or `Workers` that outlast this call.
        progress: Show a progress bar; a string is its title.

    Returns:
        One result per pair, in order. For several settings, one such list for each of them.

    Raises:
        ValueError: If predictions and targets differ in length and there are no `pairs`.

    Example:
        ```python
        from src.metrics import match
        from src.metrics.matching import CDVAE

        results = match(predictions, targets, CDVAE)
        rate = sum(result.matched for result in results) / len(results)
        ```
    """
    first, second = prepare(predictions), prepare(targets)
    if pairs is None:
        if len(first) != len(second):
            raise ValueError(
                f"got {len(first)} predictions but {len(second)} targets; pass one prediction per "
                "target, None for one that could not be built"
            )
        pairs = [(i, i) for i in range(len(first))]
        keep = first is predictions, second is targets  # the others are needed only once
    else:
        keep = True, True
    several = (settings,) if isinstance(settings, MatcherSettings) else tuple(settings)
    task = Task(several, max_work, compiled)
    results: list[list[PairResult]] = [[] for _ in several]
    with _workers(num_workers) as workers, Progress(disable=not progress) as bar:
        shown = bar.add_task(title_of(progress), total=len(pairs))
        for chunk, found in judge(first, second, pairs, len(pairs), task, workers, keep):
            for collected, more in zip(results, found, strict=True):
                collected += more
            bar.advance(shown, len(chunk))
    return results[0] if isinstance(settings, MatcherSettings) else results


class FirstMatch(NamedTuple):
    """The first reference that a crystal matches.

    Attributes:
        reference: Its index; None if there is none.
        undecided: Indices of references before it that could not be compared, because the pair was
            too much work or one of the crystals is invalid.
    """

    reference: int | None
    undecided: tuple[int, ...]


def first_match(
    queries: AnyCrystals,
    references: AnyCrystals | None,
    settings: MatcherSettings = PYMATGEN,
    *,
    max_work: float = MAX_WORK,
    compiled: bool | None = None,
    num_workers: int | Workers | None = None,
    progress: bool | str = False,
) -> list[FirstMatch]:
    """For each query, the first reference that it matches.

    Only references of the same reduced formula are compared, in their order, and no more once one
    has matched. A verdict is that of `StructureMatcher.get_rms_dist(query, reference)`.

    Args:
        queries: See `match`.
        references: The same. None for the queries themselves: each is then compared with the
            earlier ones that have no match among theirs.
        settings: Tolerances.
        max_work, compiled, num_workers: See `match`.
        progress: Show a progress bar; a string is its title.

    Returns:
        One for each query, in order.
    """
    first = prepare(queries)
    second = first if references is None else prepare(references)
    task = Task((settings,), max_work, compiled, "verdict")
    found: list[int | None] = [None] * len(first)
    undecided: list[list[int]] = [[] for _ in range(len(first))]
    with _workers(num_workers) as workers, Progress(disable=not progress) as bar:
        shown = bar.add_task(title_of(progress), total=len(first))
        candidates = _by_formula(second)
        queues = {key: list(members) for key, members in _by_formula(first).items()}
        place, size = 0, 1
        while queues:
            # In each round, all that wait are compared with the next candidates of their formula:
            # with one among themselves, since it has to be known whether that has a match.
            if references is None:
                candidates = {key: waiting[:1] for key, waiting in queues.items()}
                queues = {key: waiting[1:] for key, waiting in queues.items()}
                place = 0
            pairs = _round(queues, candidates, place, size)
            count = sum(
                len(waiting) * len(candidates.get(key, ())[place : place + size])
                for key, waiting in queues.items()
            )
            for chunk, (results,) in judge(first, second, pairs, count, task, workers):
                for (i, j), result in zip(chunk, results, strict=True):
                    if found[i] is None and result.matched:
                        found[i] = j
                    elif found[i] is None and result.status != "unmatched":
                        undecided[i].append(j)
            place += size
            queues = {
                key: waiting
                for key, members in queues.items()
                if (references is None or place < len(candidates.get(key, ())))
                and (waiting := [i for i in members if found[i] is None])
            }
            bar.update(shown, completed=len(first) - sum(map(len, queues.values())))
            if references is not None:
                size = min(2 * size, CHUNK)
        bar.update(shown, completed=len(first))
    if incomplete := sum(map(bool, undecided)):
        logger.warning("%d crystals could not be compared with all references", incomplete)
    return [FirstMatch(*pair) for pair in zip(found, map(tuple, undecided), strict=True)]


def _round(
    queues: dict[object, list[int]], candidates: dict[object, list[int]], place: int, size: int
) -> Iterator[tuple[int, int]]:
    for key, waiting in queues.items():
        for i in waiting:
            for j in candidates.get(key, ())[place : place + size]:
                yield i, j


def match_matrix(
    queries: AnyCrystals,
    references: AnyCrystals,
    settings: MatcherSettings = CDVAE,
    *,
    max_work: float = MAX_WORK,
    compiled: bool | None = None,
    num_workers: int | Workers | None = None,
    progress: bool | str = False,
) -> np.ndarray:
    """The rms of each query with each reference, as `StructureMatcher.get_rms_dist` gives it.

    Args:
        queries, references: See `match`; Q and R crystals.
        settings: Tolerances.
        max_work, compiled, num_workers: See `match`.
        progress: Show a progress bar; a string is its title.

    Returns:
        (Q, R) rms over (V/N)^(1/3); infinite where there is no match, and NaN for a pair that could
        not be compared, because it was too much work or one of the crystals is invalid.
    """
    first, second = prepare(queries), prepare(references)
    matrix = np.full((len(first), len(second)), np.inf)
    for crystals, axis in ((first, 0), (second, 1)):
        invalid = [i for i in range(len(crystals)) if crystals.formula(i) is None]
        matrix[(invalid, slice(None)) if axis == 0 else (slice(None), invalid)] = np.nan
    candidates = _by_formula(second)
    groups = [
        (i, candidates.get(formula, []))
        for i in range(len(first))
        if (formula := first.formula(i)) is not None
    ]
    count = sum(len(others) for _, others in groups)
    pairs = ((i, j) for i, others in groups for j in others)
    task = Task((settings,), max_work, compiled)
    with _workers(num_workers) as workers, Progress(disable=not progress) as bar:
        shown = bar.add_task(title_of(progress), total=count)
        for chunk, (results,) in judge(first, second, pairs, count, task, workers):
            for pair, result in zip(chunk, results, strict=True):
                if result.rms is not None:
                    matrix[pair] = result.rms
                elif result.status != "unmatched":
                    matrix[pair] = np.nan
            bar.advance(shown, len(chunk))
    return matrix


@contextmanager
def _workers(given: int | Workers | None) -> Iterator[Workers]:
    """Those that were given, or some for as long as the block runs."""
    if isinstance(given, Workers):
        yield given
    else:
        with Workers(given) as workers:
            yield workers


def _by_formula(crystals: PreparedCrystals) -> dict[object, list[int]]:
    groups: dict[object, list[int]] = defaultdict(list)
    for i in range(len(crystals)):
        if (formula := crystals.formula(i)) is not None:
            groups[formula].append(i)
    return dict(groups)
