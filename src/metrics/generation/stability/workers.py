"""Judge many crystals in worker processes, each with one thread and a potential of its own.

A crystal on which a worker crashes or exceeds the time limit is charged alone, and the others go
on. What a crystal is given does not depend on the number of workers.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pebble import ProcessExpired, ProcessPool

from src.data.crystal import Crystal
from src.utils.processes import WorkerContext, follow_parent, num_cpus
from src.utils.threads import at_most_threads

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

    from src.metrics.generation.stability.energies import Relaxation

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_GRACE = 10.0  # seconds that a worker may take beyond the limit, which it looks at between steps
_STARTUP = 120.0  # seconds: ample for workers to import torch from a slow disk
_MAX_BREAKDOWNS = 3  # of the whole pool, without a result


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done with one crystal.

    Attributes:
        crystal: the crystal to start from.
        relaxation: None for a single point.
    """

    crystal: Crystal
    relaxation: Relaxation | None


def judge(
    jobs: Sequence[Job], potential: str, num_workers: int | None = None, time_limit: float = 600.0
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Compute the energies of crystals, and yield them as they come.

    Args:
        jobs: one for each crystal.
        potential: see `find_potential`.
        num_workers: processes; None for one per CPU; 0 for this process, in which a crystal that
            hangs cannot be ended.
        time_limit: seconds for one crystal.

    Yields:
        The index of a job, and the results of `single_point` or `relax`. If that fails: `failed`,
        the reason, and `time_limit` if that was too short or `crashed` if the worker died.

    Raises:
        UserError: if the potential cannot be loaded.
        RuntimeError: if the workers die again and again before they give a result.
    """
    from src.metrics.generation.stability.potentials import open_calculator

    count = min(num_cpus() if num_workers is None else num_workers, len(jobs))
    if count == 0:
        with at_most_threads(1):
            calculator = open_calculator(potential) if jobs else None
            for index, job in enumerate(jobs):
                assert calculator is not None
                yield index, _run(job, calculator, time_limit)
        return
    open_calculator(potential)  # so that an error is said once and at once
    yield from _in_workers(jobs, potential, count, time_limit)


def _in_workers(
    jobs: Sequence[Job], potential: str, count: int, time_limit: float
) -> Iterator[tuple[int, dict[str, Any]]]:
    waiting = deque(range(len(jobs)))
    breakdowns = 0
    while waiting:
        running: dict[Future[dict[str, Any]], int] = {}
        last_sign = time.monotonic()
        pool = ProcessPool(
            count, initializer=_start_worker, initargs=(potential,), context=WorkerContext()
        )
        try:
            while waiting or running:
                # one more than can run, so that no worker has to wait for this process
                while waiting and len(running) <= count:
                    arguments = (jobs[waiting[0]], time_limit)
                    limit = time_limit + _GRACE
                    running[pool.schedule(_run_in_worker, args=arguments, timeout=limit)] = waiting[
                        0
                    ]
                    waiting.popleft()
                for future in wait(running, timeout=1.0, return_when=FIRST_COMPLETED).done:
                    error = future.exception()
                    if isinstance(error, BrokenProcessPool):
                        raise error
                    index, last_sign = running.pop(future), time.monotonic()
                    breakdowns = 0
                    yield index, _failure(error, time_limit) if error else future.result()
                stalled = time.monotonic() - last_sign > 2 * (time_limit + _GRACE) + _STARTUP
                if stalled or not pool.active:
                    raise BrokenProcessPool
        except RuntimeError as error:  # also where no work can be given to a broken pool
            breakdowns += 1
            if breakdowns > _MAX_BREAKDOWNS:
                raise RuntimeError(
                    f"the workers died {breakdowns} times in a row without a result: look for "
                    "their error above, or set num_workers=0 to work in this process"
                ) from error
            waiting.extendleft(sorted(running.values(), reverse=True))
        finally:
            pool.stop()
            pool.join()


def _failure(error: BaseException, time_limit: float) -> dict[str, Any]:
    if isinstance(error, TimeoutError):
        return {"failed": f"no result within {time_limit:g} s", "time_limit": time_limit}
    if isinstance(error, ProcessExpired):
        return {"failed": f"its worker died with exit code {error.exitcode}", "crashed": True}
    return {"failed": f"{type(error).__name__}: {error}"}


def _run(job: Job, calculator: Calculator, time_limit: float) -> dict[str, Any]:
    """The results of a job; any failure is that of its crystal."""
    from src.data.crystal import CrystalError
    from src.metrics.generation.stability.energies import relax, single_point

    start = time.monotonic()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            if job.relaxation is None:
                return single_point(job.crystal, calculator)
            found = relax(job.crystal, calculator, job.relaxation, time_limit)
            return {**found, "seconds": round(time.monotonic() - start, 3)}
    except TimeoutError as error:
        return _failure(error, time_limit)
    except CrystalError as error:
        return {"failed": str(error)}
    except Exception as error:  # whatever a wild crystal provokes
        return _failure(error, time_limit)


# What runs in the workers.


_calculator: Calculator


def _start_worker(potential: str) -> None:
    follow_parent()
    # a worker inside compiled code would let pebble wait for it in vain
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))  # before torch is loaded
    from src.metrics.generation.stability.potentials import open_calculator

    global _calculator
    _calculator = open_calculator(potential)


def _run_in_worker(job: Job, time_limit: float) -> dict[str, Any]:
    return _run(job, _calculator, time_limit)
