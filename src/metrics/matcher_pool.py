"""pymatgen's StructureMatcher, or any other function, on pairs of crystals in worker processes.

StructureMatcher can loop for hours inside compiled code on a badly shaped cell, and can take the
process down with it. So pairs are matched in worker processes that can be killed: a pair that
exceeds its limit, or kills its worker, is charged alone and by name, and the run goes on.

This module imports neither torch nor, at its top, pymatgen: workers stay small and start quickly.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from typing import TYPE_CHECKING, ClassVar, overload

from pebble import ProcessExpired, ProcessPool
from rich.progress import Progress

from src.metrics.structure_matching.settings import CDVAE, MatcherSettings, PairResult
from src.utils.errors import UserError
from src.utils.formulas import reduced_formula
from src.utils.processes import WorkerContext, num_cpus
from src.utils.progress import title_of

if TYPE_CHECKING:
    from pymatgen.core import Structure

logger = logging.getLogger(__name__)

_MAX_WORKERS = 16  # default only: beyond it, starting workers costs more than they save
_MAX_CHUNK = 32  # jobs sent to a worker at once, about a quarter of a second of matching
_MAX_BREAKDOWNS = 3  # a pool that breaks more often without finishing a chunk never will
_STARTUP = 120.0  # seconds: ample for workers to import pymatgen from a slow disk
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def rms_distance(
    prediction: Structure, target: Structure, settings: MatcherSettings
) -> float | None:
    """Normalised rms displacement of one pair, or None if it does not match.

    Prediction first, as CDVAE's evaluation has it: StructureMatcher is not quite symmetric.

    Raises:
        ValueError: If a coordinate or the cell is not finite, or the cell has no volume.
    """
    from pymatgen.analysis.structure_matcher import StructureMatcher

    for name, structure in (("prediction", prediction), ("target", target)):
        if not math.isfinite(structure.cart_coords.sum()):
            raise ValueError(f"the {name} has coordinates that are not finite")
        if not 0 < structure.volume < math.inf:
            raise ValueError(f"the {name}'s cell has volume {structure.volume} Å^3")
    # Such a pair cannot match, and the matcher would first reduce both cells, which may hang.
    compositions = (s.composition.fractional_composition for s in (prediction, target))
    if next(compositions) != next(compositions):
        return None
    matcher = StructureMatcher(**asdict(settings), primitive_cell=settings.primitive_cell)
    match = matcher.get_rms_dist(prediction, target)
    return None if match is None else float(match[0])


Matcher = Callable[["Structure", "Structure", MatcherSettings], float | None]
Job = tuple["Structure | None", "Structure", MatcherSettings]


class MatcherPool:
    """Worker processes that match pairs of structures, kept alive between calls.

    Workers start with the first call (about a second) and end with `close`, with the `with`
    block, or with the program. A call that is interrupted ends them too; the next starts new ones.
    The pool is not meant to be shared by threads.

    Args:
        num_workers: None for one per CPU that this process may use, at most 16. With 0, pairs are
            matched in this process: nothing can be killed then, so `timeout` has no effect and a
            crash is a crash.
        timeout: Limit in seconds for one pair under one settings. A pair that hangs is noticed
            with its chunk and tried once more alone, so it costs its worker twice this long.
        matcher: What to run on a pair, `rms_distance` unless replaced. Workers import it by name,
            so it must be a top-level function outside the main script.

    Raises:
        ValueError: If num_workers is negative or timeout is not positive.
    """

    name: ClassVar[str] = "pymatgen"

    def __init__(
        self,
        num_workers: int | None = None,
        *,
        timeout: float = 10.0,
        matcher: Matcher = rms_distance,
    ) -> None:
        if num_workers is None:
            num_workers = min(num_cpus(), _MAX_WORKERS)
        if num_workers < 0:
            raise UserError(f"num_workers must be at least 0, got {num_workers}")
        if not timeout > 0:
            raise UserError(f"timeout must be a positive number of seconds, got {timeout}")
        self.num_workers = num_workers
        self.timeout = timeout
        self.matcher = matcher
        self._pool: ProcessPool | None = None

    def __enter__(self) -> MatcherPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, whatever they are doing. `match` would start new ones."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    @overload
    def match(
        self,
        targets: Sequence[Structure],
        predictions: Sequence[Structure | None],
        settings: MatcherSettings = ...,
        *,
        pairs: Sequence[tuple[int, int]] | None = ...,
        progress: bool | str = ...,
    ) -> list[PairResult]: ...

    @overload
    def match(
        self,
        targets: Sequence[Structure],
        predictions: Sequence[Structure | None],
        settings: Sequence[MatcherSettings],
        *,
        pairs: Sequence[tuple[int, int]] | None = ...,
        progress: bool | str = ...,
    ) -> list[list[PairResult]]: ...

    def match(
        self,
        targets: Sequence[Structure],
        predictions: Sequence[Structure | None],
        settings: MatcherSettings | Sequence[MatcherSettings] = CDVAE,
        *,
        pairs: Sequence[tuple[int, int]] | None = None,
        progress: bool | str = False,
    ) -> list[PairResult] | list[list[PairResult]]:
        """Match each prediction with the target at the same place.

        Args:
            targets: The true crystals.
            predictions: Their reconstructions; None for one that could not be built, an `error`.
            settings: One, or several to run in the same pass.
            pairs: Indices of predictions and targets to match instead.
            progress: Show a progress bar; a string is its title.

        Returns:
            One result per pair, in order. For several settings, one such list for each of them.

        Raises:
            ValueError: If targets and predictions differ in length and there are no `pairs`.
            RuntimeError: If workers cannot be started.
        """
        if pairs is not None:
            predictions, targets = (
                [predictions[i] for i, _ in pairs],
                [targets[j] for _, j in pairs],
            )
        if len(targets) != len(predictions):
            raise ValueError(
                f"got {len(targets)} targets but {len(predictions)} predictions; pass one "
                "prediction per target, None for one that could not be built"
            )
        if isinstance(settings, MatcherSettings):
            return self.match(targets, predictions, [settings], progress=progress)[0]

        jobs: list[Job] = [
            (prediction, target, each)
            for prediction, target in zip(predictions, targets, strict=True)
            for each in settings
        ]
        results: dict[int, PairResult] = {}
        try:
            with Progress(disable=not progress) as bar:
                task = bar.add_task(title_of(progress), total=len(jobs))
                for index, result in self._run(jobs):
                    results[index] = result
                    bar.advance(task)
                    if result.status in ("timeout", "crashed"):
                        _warn(index // len(settings), jobs[index][1], result)
        except BaseException:
            self.close()
            raise
        return [
            [results[index] for index in range(offset, len(jobs), len(settings))]
            for offset in range(len(settings))
        ]

    def _run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, PairResult]]:
        """Yield (index of the job, its result), in no particular order."""
        if self.num_workers == 0:
            for index, job in enumerate(jobs):
                yield index, _match_jobs(self.matcher, [job])[0]
            return
        # At least four chunks per worker, so that the workers finish at about the same time.
        size = max(1, min(_MAX_CHUNK, len(jobs) // (4 * self.num_workers)))
        indices = range(len(jobs))
        waiting = deque(indices[start : start + size] for start in indices[::size])
        running: dict[Future[list[PairResult]], range] = {}
        breakdowns, last_sign = 0, time.monotonic()
        while waiting or running:
            stalled = time.monotonic() - last_sign > 2 * self.timeout + _STARTUP
            if self._pool is not None and (stalled or not self._pool.active):
                # A worker died as it started, waited or took a task. pebble counts that as the end
                # of the pool or loses the task, so begin again with what is left.
                self.close()
                last_sign = time.monotonic()
                waiting.extendleft(running.values())
                running.clear()
                breakdowns += 1
                if breakdowns > _MAX_BREAKDOWNS:
                    raise RuntimeError(
                        f"the matching workers died {breakdowns} times in a row without a result; "
                        "look for their error above, or pass num_workers=0 to match in this process"
                    )
            # One chunk more than can run, so that no worker has to wait for this process.
            while waiting and len(running) <= self.num_workers:
                chunk = waiting.popleft()
                running[self._submit([jobs[index] for index in chunk])] = chunk
            for future in wait(running, timeout=1.0, return_when=FIRST_COMPLETED).done:
                chunk, last_sign = running.pop(future), time.monotonic()
                error = future.exception()
                if error is None:
                    breakdowns = 0
                    yield from zip(chunk, future.result(), strict=True)
                elif isinstance(error, BrokenProcessPool):
                    waiting.appendleft(chunk)
                elif len(chunk) > 1:  # who is to blame? each again, alone
                    waiting.extendleft(chunk[i : i + 1] for i in range(len(chunk)))
                else:
                    yield chunk[0], self._failure(error)

    def _submit(self, jobs: list[Job]) -> Future[list[PairResult]]:
        if self._pool is None:
            self._pool = ProcessPool(
                self.num_workers,
                initializer=_start_worker,
                initargs=(pickle.dumps(self.matcher),),
                context=WorkerContext(),
            )
        # Pickled here and unpickled by the task itself: pebble's workers would do it while they
        # hold the queue's lock, and an error there is lost.
        return self._pool.schedule(_match_payload, args=(pickle.dumps(jobs),), timeout=self.timeout)

    def _failure(self, error: BaseException) -> PairResult:
        if isinstance(error, TimeoutError):
            return PairResult("timeout", message=f"no result within {self.timeout:g} s")
        if isinstance(error, ProcessExpired):
            return PairResult("crashed", message=f"worker died with exit code {error.exitcode}")
        return PairResult("error", message=_describe(error))


def _match_jobs(matcher: Matcher, jobs: Sequence[Job]) -> list[PairResult]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, over predictions that make no sense
        return [_match_job(matcher, *job) for job in jobs]


def _match_job(
    matcher: Matcher, prediction: Structure | None, target: Structure, settings: MatcherSettings
) -> PairResult:
    if prediction is None:
        return PairResult("error", message="the prediction could not be built")
    try:
        rms = matcher(prediction, target, settings)
    except Exception as error:  # whatever a wild prediction provokes is that pair's failure
        return PairResult("error", message=_describe(error))
    return PairResult("unmatched") if rms is None else PairResult("matched", rms)


def _warn(pair: int, target: Structure, result: PairResult) -> None:
    formula = reduced_formula(target.composition)
    logger.warning("pair %d (%s): %s, %s", pair, formula, result.status, result.message)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


# What runs in the workers.


_worker_matcher: Matcher


def _start_worker(matcher: bytes) -> None:
    # pebble asks a worker to end by SIGTERM and waits three seconds for Python to react, which it
    # cannot do inside compiled code. There is nothing to tidy up: end at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # SLURM may send it to all processes of a job; what follows from it is for the parent to say.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # Read when numpy is loaded, so before pymatgen and the matcher's module are.
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    import pymatgen.analysis.structure_matcher  # noqa: F401

    # Here and not with each task, so that its imports are not charged to a pair.
    global _worker_matcher
    _worker_matcher = pickle.loads(matcher)


def _match_payload(jobs: bytes) -> list[PairResult]:
    return _match_jobs(_worker_matcher, pickle.loads(jobs))
