"""The results of many pairs of prepared crystals, in this process or in workers."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice

import numpy as np

from src.metrics.structure_matching.crystals import Packed, PreparedCrystals, pack, unpack
from src.metrics.structure_matching.reduction import (
    Cell,
    ReductionError,
    kind_of,
    named_kinds,
)
from src.metrics.structure_matching.search import UNMATCHED, Goal, Outcome, Tolerances, search
from src.metrics.structure_matching.settings import MatcherSettings, PairResult
from src.utils.errors import UserError
from src.utils.processes import WorkerContext, follow_parent, num_cpus

logger = logging.getLogger(__name__)

WORK_PER_SECOND = 2e7
"""About what one core does; limits in seconds are turned into work with this number, so that
verdicts do not depend on the machine or on what else it does."""

MAX_WORK = 10 * WORK_PER_SECOND
"""Default limit on the work for one pair, about ten seconds. The work is the number of cell bases
to try, times translations, times pairs of atoms of the same element; it is known beforehand."""

CHUNK = 512  # pairs at a time: enough to spread the overhead, few enough for the memory
_MIN_CHUNK = 64
_MAX_WORKERS = 16  # default only: each takes some memory, and a second to start
_WORTH_STARTING = 80_000  # atoms times settings, some three seconds: for less, no workers start
_WORTH_SENDING = 8_000  # for less, workers that are there are left alone

Pairs = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Task:
    """What to do with each pair.

    Attributes:
        settings: To match with, one after the other.
        max_work, compiled, goal: See `search`.
    """

    settings: tuple[MatcherSettings, ...]
    max_work: float = MAX_WORK
    compiled: bool | None = None
    goal: Goal = "rms"


class Workers:
    """Processes that match. They start once there is so much to do that it pays, and then stay.

    Args:
        number: None for one per CPU that this process may use, at most 16; with 0 or 1, all is done
            in this process.

    Raises:
        UserError: If `number` is negative.
    """

    def __init__(self, number: int | None = None) -> None:
        if number is not None and number < 0:
            raise UserError(f"num_workers must be at least 0, got {number}")
        self.number = min(num_cpus(), _MAX_WORKERS) if number is None else number
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; what comes later starts new ones."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None

    def start(self) -> ProcessPoolExecutor:
        """Without waiting until it pays."""
        if self._executor is None:
            self._executor = ProcessPoolExecutor(self.number, WorkerContext(), follow_parent)
        return self._executor

    def executor(self, amount: float) -> ProcessPoolExecutor | None:
        """To do so much with (atoms times settings); None if that is done sooner here."""
        if self.number < 2 or amount < (_WORTH_SENDING if self._executor else _WORTH_STARTING):
            return None
        return self.start()


def judge(
    first: PreparedCrystals,
    second: PreparedCrystals,
    pairs: Iterable[tuple[int, int]],
    count: int,
    task: Task,
    workers: Workers,
    keep: tuple[bool, bool] = (True, True),
) -> Iterator[tuple[Pairs, list[list[PairResult]]]]:
    """Some pairs at a time, and for each of the settings their results.

    Args:
        first, second: Crystals.
        pairs: Indices of both.
        count: How many pairs these are.
        task: What to do.
        workers: To do it with.
        keep: Whether the reduced cells of `first`, and of `second`, will be needed again.
    """
    if not count:
        return
    some = [first.num_atoms(i) for i in range(0, len(first), 1 + len(first) // 1000)]
    executor = workers.executor(count * len(task.settings) * float(np.mean(some)))
    chunks = _chunks(pairs, count, 0 if executor is None else workers.number)
    if executor is None:
        for chunk in chunks:
            yield chunk, _judge_chunk(first, second, chunk, task)
            _forget(first, second, chunk, keep)
        return
    running: deque[tuple[Pairs, tuple[list[int], list[int]], Future]] = deque()
    try:
        while True:
            for chunk in islice(chunks, 2 * workers.number + 1 - len(running)):
                running.append(_send(executor, first, second, chunk, task, keep))
            if not running:
                return
            chunk, indices, future = running.popleft()
            try:
                results, reduced = future.result()
            except BrokenProcessPool:
                logger.warning("a matching worker died; its pairs are matched in this process")
                workers.close()
                results, reduced = _judge_chunk(first, second, chunk, task), None
                executor = None
            if reduced is not None:
                for crystals, these, kept, cells in zip(
                    (first, second), indices, keep, reduced, strict=True
                ):
                    if kept:
                        crystals.learn(these, [unpack(packed) for packed in cells])
            yield chunk, results
            if executor is None:  # what was sent is lost, and the rest is done here
                lost = [pair for chunk, _, _ in running for pair in chunk]
                running.clear()
                rest = (pair for part in ([lost], chunks) for chunk in part for pair in chunk)
                yield from judge(first, second, rest, count, task, Workers(0), keep)
                return
    finally:
        for _, _, future in running:
            future.cancel()


def _chunks(pairs: Iterable[tuple[int, int]], count: int, num_workers: int) -> Iterator[Pairs]:
    """Pairs in lists of at most `CHUNK`, shorter ones towards the end, so that all workers end at
    about the same time."""
    iterator, sent = iter(pairs), 0
    while True:
        size = CHUNK
        if num_workers:
            size = max(_MIN_CHUNK, min(CHUNK, (count - sent) // (4 * num_workers)))
        if not (chunk := list(islice(iterator, size))):
            return
        sent += len(chunk)
        yield chunk


Reduced = list[Packed]  # Niggli cells and primitive cells


def _send(
    executor: ProcessPoolExecutor,
    first: PreparedCrystals,
    second: PreparedCrystals,
    chunk: Pairs,
    task: Task,
    keep: tuple[bool, bool],
) -> tuple[Pairs, tuple[list[int], list[int]], Future]:
    indices = list(dict.fromkeys(i for i, _ in chunk)), list(dict.fromkeys(j for _, j in chunk))
    places = [{index: place for place, index in enumerate(these)} for these in indices]
    local = [(places[0][i], places[1][j]) for i, j in chunk]
    parts = first.part(indices[0]), second.part(indices[1])
    try:
        future = executor.submit(_judge_parts, *parts, local, task, keep, named_kinds())
    except BrokenProcessPool as error:
        future = Future()
        future.set_exception(error)
    return chunk, indices, future


def _judge_parts(
    first: PreparedCrystals,
    second: PreparedCrystals,
    pairs: Pairs,
    task: Task,
    keep: tuple[bool, bool],
    names: Iterable[str],
) -> tuple[list[list[PairResult]], list[Reduced]]:
    """In a worker: the results, and the cells that were reduced here."""
    for name in names:
        kind_of(name)
    known = [[set(cells) for cells in crystals.reduced()] for crystals in (first, second)]
    results = _judge_chunk(first, second, pairs, task)
    new = [
        [
            pack({i: cell for i, cell in cells.items() if kept and i not in before})
            for cells, before in zip(crystals.reduced(), sets, strict=True)
        ]
        for crystals, sets, kept in zip((first, second), known, keep, strict=True)
    ]
    return results, new


def _forget(
    first: PreparedCrystals, second: PreparedCrystals, chunk: Pairs, keep: tuple[bool, bool]
) -> None:
    for crystals, kept, side in zip((first, second), keep, (0, 1), strict=True):
        if not kept:
            crystals.forget(pair[side] for pair in chunk)


def _judge_chunk(
    first: PreparedCrystals, second: PreparedCrystals, pairs: Pairs, task: Task
) -> list[list[PairResult]]:
    return [_judge_with(first, second, pairs, settings, task) for settings in task.settings]


def _judge_with(
    first: PreparedCrystals,
    second: PreparedCrystals,
    pairs: Pairs,
    settings: MatcherSettings,
    task: Task,
) -> list[PairResult]:
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
    found = search(cells, tolerances, task.max_work, task.goal, task.compiled)
    for k, outcome in zip(searched, found, strict=True):
        outcomes[k] = outcome
    return [_result(outcome, task.max_work) for outcome in outcomes]


def _result(outcome: Outcome | ReductionError, max_work: float) -> PairResult:
    if isinstance(outcome, ReductionError):
        return PairResult("error", message=f"ValueError: {outcome}")
    if not outcome.complete:
        return PairResult(
            "timeout", message=f"needs work of {outcome.work:.2g}, over the limit of {max_work:.2g}"
        )
    return PairResult("matched", outcome.rms) if outcome.matched else PairResult("unmatched")
