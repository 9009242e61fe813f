"""Speed and memory use of parsing a large CSV file into the cache."""

import tempfile
import time
from pathlib import Path

import pandas as pd

from benchmarks import Row, in_fresh_process, peak_resident
from src.data.dataset import load_split
from src.data.parsing import ReadOptions
from src.data.readers import CsvReader
from src.utils.processes import num_cpus

PART = 10_000  # rows to write at a time


def run(source: Path, num_crystals: int) -> list[Row]:
    """Parse the crystals of `source`, repeated to `num_crystals`, and to twice as many for memory.

    One worker is compared with one worker per CPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{n}.csv" for n in (num_crystals, 2 * num_crystals)]
        in_fresh_process(_repeat, str(source), str(paths[0]), num_crystals)
        in_fresh_process(_repeat, str(source), str(paths[1]), 2 * num_crystals)
        sizes = [path.stat().st_size / 2**20 for path in paths]
        cases = ((paths[0], 1), (paths[0], num_cpus()), (paths[1], num_cpus()))
        seconds, grown = zip(
            *(in_fresh_process(_prepare, str(path), workers) for path, workers in cases),
            strict=True,
        )
    rates = [num_crystals / seconds[0], num_crystals / seconds[1], 2 * num_crystals / seconds[2]]
    names = ["1 worker", f"{num_cpus()} workers", f"{num_cpus()} workers, twice the crystals"]
    bench = f"prepare: {num_crystals:,} crystals of a CSV of {sizes[0]:,.0f} MiB"
    return [
        *(Row(bench, n, r, "crystals/s", r / rates[0]) for n, r in zip(names, rates, strict=True)),
        *(Row(bench, n, 1e5 / r, "s for 100,000") for n, r in zip(names, rates, strict=True)),
        *(
            Row(f"{bench}: growth of the main process's peak memory", n, g, "MiB", g / grown[0])
            for n, g in zip(names, grown, strict=True)
        ),
    ]


def _repeat(source: str, path: str, num_crystals: int) -> None:
    table = pd.read_csv(source, usecols=["material_id", "cif"], dtype=str)
    with Path(path).open("w") as file:
        for start in range(0, num_crystals, PART):
            rows = [i % len(table) for i in range(start, min(start + PART, num_crystals))]
            table.iloc[rows].to_csv(file, index=False, header=start == 0)


def _prepare(path: str, num_workers: int) -> tuple[float, float]:
    """Time in seconds, and growth of the peak resident memory in MiB."""
    before = peak_resident()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        load_split(CsvReader(Path(path)), ReadOptions(), Path(folder), 1.0, num_workers)
    return time.perf_counter() - start, peak_resident() - before
