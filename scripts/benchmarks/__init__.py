"""Shared parts of the benchmarks: alternating timing, result rows, and memory measurements."""

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.progress import track

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """One result. `ratio` is relative to the reference variant, measured in the same run."""

    bench: str
    variant: str
    value: float
    unit: str
    ratio: float | None = None


# A variant does some work and returns the amount of work (crystals, pairs, ...).
Variant = Callable[[], float]


def alternate(
    variants: Mapping[str, Variant],
    rounds: int,
    title: str,
    warm_up: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Run all variants alternately, `rounds` times; return the median work per second of each.

    Unless `warm_up` is False, there is an additional first round that does not count. With
    `time.process_time` for a clock, other processes on the machine hardly change the rates.
    """
    rates: dict[str, list[float]] = {name: [] for name in variants}
    turns = [(k, name) for k in range(not warm_up, rounds + 1) for name in variants]
    for k, name in track(turns, title, transient=True):
        synchronize()
        start = clock()
        work = variants[name]()
        synchronize()
        if k:
            rates[name].append(work / (clock() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def compare(
    bench: str, rates: Mapping[str, float], unit: str, reference: str | None = None
) -> list[Row]:
    """One row per rate, with its ratio to the reference (by default, the first one)."""
    base = rates[reference or next(iter(rates))]
    return [Row(bench, name, rate, unit, rate / base) for name, rate in rates.items()]


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_fresh_process(function: Callable[..., T], *args: Any) -> T:
    """Call `function` in a new process, so that its memory use can be measured separately."""
    # unlike a Pool, an executor lets its processes start other processes
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def can_measure_memory() -> bool:
    """Whether `peak_memory` works on this machine."""
    return torch.cuda.is_available() or sys.platform == "linux"


def peak_memory() -> float:
    """Peak memory so far in MiB: of tensors on the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_resident()


def peak_resident() -> float:
    """Peak resident memory of this process so far, in MiB. Linux only."""
    # not getrusage, because a child process inherits the peak of its parent
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def device() -> torch.device:
    """The device that the benchmarks run on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
