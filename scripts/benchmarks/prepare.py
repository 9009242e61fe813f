"""A large CSV to its cache: how fast with how many workers, and in how much memory."""

import tempfile
import time
from pathlib import Path

import pandas as pd

from benchmarks import Row, in_fresh_process, peak_resident
from src.data.dataset import load_split
from src.data.parsing import ReadOptions
from src.data.readers import CsvReader
from src.utils.processes import num_cpus

PART = 10_000  # rows in memory as the CSV is written


def run(source: Path, num_crystals: int) -> list[Row]:
    """Crystals of `source`, repeated, with one worker and with one per CPU; memory for twice as
    many, too."""
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
    """Seconds, and MiB by which the peak of resident memory grows."""
    before = peak_resident()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        load_split(CsvReader(Path(path)), ReadOptions(), Path(folder), 1.0, num_workers)
    return time.perf_counter() - start, peak_resident() - before
