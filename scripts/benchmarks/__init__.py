"""What the benchmarks share: alternated timing, rows, models and the stock way of doing it."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from rich.progress import track


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


def device() -> torch.device:
    """The device that the benchmarks run on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
