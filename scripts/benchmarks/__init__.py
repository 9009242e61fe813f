"""What the benchmarks share: alternated timing, rows, models and the stock way of doing it."""

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
    """One figure; `ratio` is against the benchmark's reference, measured in the same run."""

    bench: str
    variant: str
    value: float
    unit: str
    ratio: float | None = None


# A variant does a piece of work, and says how much it was (crystals, pairs, ...).
Variant = Callable[[], float]


def alternate(variants: Mapping[str, Variant], rounds: int, title: str) -> dict[str, float]:
    """Median rate of each variant (work per second), all of them run in turn `rounds` times.

    One round more comes first and does not count.
    """
    rates: dict[str, list[float]] = {name: [] for name in variants}
    turns = [(k, name) for k in range(rounds + 1) for name in variants]
    for k, name in track(turns, title, transient=True):
        synchronize()
        start = time.perf_counter()
        work = variants[name]()
        synchronize()
        if k:
            rates[name].append(work / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def compare(
    bench: str, rates: Mapping[str, float], unit: str, reference: str | None = None
) -> list[Row]:
    """Rows of rates, each with its ratio to the reference (the first, unless named)."""
    base = rates[reference or next(iter(rates))]
    return [Row(bench, name, rate, unit, rate / base) for name, rate in rates.items()]


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_fresh_process(function: Callable[..., T], *args: Any) -> T:
    """What `function` returns in a process of its own, whose memory is its alone."""
    # an executor's processes may start others, which those of a Pool may not
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def can_measure_memory() -> bool:
    """Whether `peak_memory` knows how, here."""
    return torch.cuda.is_available() or sys.platform == "linux"


def peak_memory() -> float:
    """MiB at the peak so far: of tensors on a GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_resident()


def peak_resident() -> float:
    """MiB of this process's resident memory at the peak so far; on Linux."""
    # not getrusage, whose peak a child inherits from its parent
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def device() -> torch.device:
    """The device that the benchmarks run on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
