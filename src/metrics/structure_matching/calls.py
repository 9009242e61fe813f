"""The public calls: many pairs, the first match of each crystal, all against all.

Verdicts and rms are those of pymatgen's `StructureMatcher`, with its default comparator and
`scale=True`, for ordered crystals.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, overload

import numpy as np
from rich.progress import Progress

from src.metrics.structure_matching.crystals import PreparedCrystals, prepare
from src.metrics.structure_matching.reduction import Cell, ReductionError
from src.metrics.structure_matching.search import UNMATCHED, Goal, Outcome, Tolerances, search
from src.metrics.structure_matching.settings import CDVAE, PYMATGEN, MatcherSettings, PairResult

if TYPE_CHECKING:
    from src.metrics.structure_matching.crystals import AnyCrystals

logger = logging.getLogger(__name__)

MAX_WORK = 2e8
"""Default limit on the work for one pair, about ten seconds. The work is the number of cell bases
to try, times translations, times pairs of atoms of the same element; it is known beforehand."""

_CHUNK = 512  # pairs at a time: enough to spread the overhead, few enough for the memory


@overload
def match(
    predictions: AnyCrystals,
    targets: AnyCrystals,
    settings: MatcherSettings = ...,
    *,
    max_work: float = ...,
    compiled: bool | None = ...,
    progress: bool = ...,
) -> list[PairResult]: ...


@overload
def match(
    predictions: AnyCrystals,
    targets: AnyCrystals,
    settings: Sequence[MatcherSettings],
    *,
    max_work: float = ...,
    compiled: bool | None = ...,
    progress: bool = ...,
) -> list[list[PairResult]]: ...


def match(
    predictions: AnyCrystals,
    targets: AnyCrystals,
    settings: MatcherSettings | Sequence[MatcherSettings] = CDVAE,
    *,
    max_work: float = MAX_WORK,
    compiled: bool | None = None,
    progress: bool = False,
) -> list[PairResult] | list[list[PairResult]]:
    """Match each prediction with the target at the same place.

    A result is that of `StructureMatcher.get_rms_dist(prediction, target)`; the order matters,
    because pymatgen's matcher is not quite symmetric.

    Args:
        predictions: pymatgen Structures, ASE Atoms, a CrystalBatch, or `PreparedCrystals` of them.
            None for one that could not be built, an `error`.
        targets: The same for the true crystals.
        settings: One, or several, for which crystals are reduced only once.
        max_work: A pair that needs more work is not matched: it is a `timeout`, with a message that
            gives its work. See `MAX_WORK`.
        compiled: Whether loops that Numba compiles do the work, or NumPy's arrays, which give the
            same results. None for Numba's where it can be imported.
        progress: Show a progress bar.

    Returns:
        One result per pair, in order. For several settings, one such list for each of them.

    Raises:
        ValueError: If predictions and targets differ in length.

    Example:
        ```python
        from src.metrics import match
        from src.metrics.matching import CDVAE

        results = match(predictions, targets, CDVAE)
        rate = sum(result.matched for result in results) / len(results)
        ```
    """
    first, second = prepare(predictions), prepare(targets)
    if len(first) != len(second):
        raise ValueError(
            f"got {len(first)} predictions but {len(second)} targets; pass one prediction per "
            "target, None for one that could not be built"
        )
    several = [settings] if isinstance(settings, MatcherSettings) else list(settings)
    results: list[list[PairResult]] = [[] for _ in several]
    with Progress(disable=not progress) as bar:
        task = bar.add_task("matching", total=len(first) * len(several))
        for start in range(0, len(first), _CHUNK):
            pairs = [(i, i) for i in range(start, min(start + _CHUNK, len(first)))]
            for each, collected in zip(several, results, strict=True):
                collected += _judge(first, second, pairs, each, max_work, compiled)
                bar.advance(task, len(pairs))
            for given, crystals in ((predictions, first), (targets, second)):
                if given is not crystals:  # nobody needs them again
                    crystals.forget(i for i, _ in pairs)
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
    references: AnyCrystals,
    settings: MatcherSettings = PYMATGEN,
    *,
    max_work: float = MAX_WORK,
    compiled: bool | None = None,
    progress: bool = False,
) -> list[FirstMatch]:
    """For each query, the first reference that it matches.

    Only references of the same reduced formula are compared, in their order, and no more once one
    has matched. A verdict is that of `StructureMatcher.get_rms_dist(query, reference)`.

    Args:
        queries, references: See `match`.
        settings: Tolerances.
        max_work, compiled: See `match`.
        progress: Show a progress bar.

    Returns:
        One for each query, in order.
    """
    first, second = prepare(queries), prepare(references)
    candidates = _by_formula(second)
    waiting = {i: candidates.get(first.formula(i), []) for i in range(len(first))}
    found: list[int | None] = [None] * len(first)
    undecided: list[list[int]] = [[] for _ in range(len(first))]
    at = dict.fromkeys(waiting, 0)
    size = 1
    with Progress(disable=not progress) as bar:
        task = bar.add_task("matching", total=len(first))
        while waiting:
            for group in _grouped(waiting, size):
                pairs = [(i, j) for i in group for j in waiting[i][at[i] : at[i] + size]]
                for (i, j), result in zip(
                    pairs,
                    _judge(first, second, pairs, settings, max_work, compiled, "verdict"),
                    strict=True,
                ):
                    if found[i] is None and result.matched:
                        found[i] = j
                    elif found[i] is None and result.status != "unmatched":
                        undecided[i].append(j)
                for i in group:
                    at[i] += size
            over = [i for i in waiting if found[i] is not None or at[i] >= len(waiting[i])]
            for i in over:
                del waiting[i]
            bar.advance(task, len(over))
            size = min(2 * size, _CHUNK)
    if count := sum(map(bool, undecided)):
        logger.warning("%d crystals could not be compared with all references", count)
    return [FirstMatch(*pair) for pair in zip(found, map(tuple, undecided), strict=True)]


def match_matrix(
    queries: AnyCrystals,
    references: AnyCrystals,
    settings: MatcherSettings = CDVAE,
    *,
    max_work: float = MAX_WORK,
    compiled: bool | None = None,
    progress: bool = False,
) -> np.ndarray:
    """The rms of each query with each reference, as `StructureMatcher.get_rms_dist` gives it.

    Args:
        queries, references: See `match`; Q and R crystals.
        settings: Tolerances.
        max_work, compiled: See `match`.
        progress: Show a progress bar.

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
    pairs = [
        (i, j)
        for i in range(len(first))
        if first.formula(i) is not None
        for j in candidates.get(first.formula(i), [])
    ]
    with Progress(disable=not progress) as bar:
        task = bar.add_task("matching", total=len(pairs))
        for start in range(0, len(pairs), _CHUNK):
            chunk = pairs[start : start + _CHUNK]
            for pair, result in zip(
                chunk, _judge(first, second, chunk, settings, max_work, compiled), strict=True
            ):
                if result.rms is not None:
                    matrix[pair] = result.rms
                elif result.status != "unmatched":
                    matrix[pair] = np.nan
            bar.advance(task, len(chunk))
    return matrix


def _by_formula(crystals: PreparedCrystals) -> dict[object, list[int]]:
    groups: dict[object, list[int]] = defaultdict(list)
    for i in range(len(crystals)):
        if crystals.formula(i) is not None:
            groups[crystals.formula(i)].append(i)
    return dict(groups)


def _grouped(items: Iterable[int], size: int) -> Iterator[list[int]]:
    """Lists of as many items as make a chunk, where each stands for `size` pairs."""
    listed = list(items)
    step = max(1, _CHUNK // size)
    for start in range(0, len(listed), step):
        yield listed[start : start + step]


def _judge(
    first: PreparedCrystals,
    second: PreparedCrystals,
    pairs: Sequence[tuple[int, int]],
    settings: MatcherSettings,
    max_work: float,
    compiled: bool | None,
    goal: Goal = "rms",
) -> list[PairResult]:
    """The results of some pairs of crystals, given by their indices."""
    outcomes: list[Outcome | ReductionError] = [UNMATCHED] * len(pairs)
    possible = []
    for k, (i, j) in enumerate(pairs):
        formulas = first.formula(i), second.formula(j)
        if None in formulas or formulas[0] == formulas[1]:
            possible.append(k)
    predictions = first.cells((pairs[k][0] for k in possible), settings.primitive_cell)
    targets = second.cells((pairs[k][1] for k in possible), settings.primitive_cell)
    cells: list[tuple[Cell, Cell]] = []
    searched = []
    for k, prediction, target in zip(possible, predictions, targets, strict=True):
        if isinstance(prediction, ReductionError):
            outcomes[k] = ReductionError(f"the prediction {prediction}")
        elif isinstance(target, ReductionError):
            outcomes[k] = ReductionError(f"the target {target}")
        else:
            cells.append((prediction, target))
            searched.append(k)
    tolerances = Tolerances(settings.stol, settings.ltol, settings.angle_tol)
    for k, outcome in zip(
        searched, search(cells, tolerances, max_work, goal, compiled), strict=True
    ):
        outcomes[k] = outcome
    return [_result(outcome, max_work) for outcome in outcomes]


def _result(outcome: Outcome | ReductionError, max_work: float) -> PairResult:
    if isinstance(outcome, ReductionError):
        return PairResult("error", message=f"ValueError: {outcome}")
    if not outcome.complete:
        return PairResult(
            "timeout", message=f"needs work of {outcome.work:.2g}, over the limit of {max_work:.2g}"
        )
    return PairResult("matched", outcome.rms) if outcome.matched else PairResult("unmatched")
