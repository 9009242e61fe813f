"""Speed of training on a CPU next to other work, by number of threads and how they wait."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from rich.progress import track

from benchmarks import Row, compare
from benchmarks.models import has_native_bf16, indexed_batches, make_step
from src.data.dataset import CrystalDataset
from src.utils.memory import keep_freed_memory
from src.utils.processes import WorkerContext, num_cpus
from src.utils.threads import SPIN_COUNT, WAIT_VARIABLES

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SIZES = {"small": "small", "medium": "medium", "full": "null"}  # the options of `size=`


def run(
    dataset: CrystalDataset, size: str, batch_size: int, rounds: int, num_busy: int
) -> list[Row]:
    """Crystals/s of each variant, alone and next to `num_busy` processes that never wait.

    Each variant has its own process, since OpenMP reads its settings when it is loaded. The
    processes are kept alive and take turns.
    """
    variants = _variants()
    rates: dict[tuple[int, str], list[float]] = {}
    with ExitStack() as stack:
        pools = {}
        for name, environment in variants.items():
            pools[name] = stack.enter_context(
                ProcessPoolExecutor(
                    1, WorkerContext(), _start, (dataset, size, batch_size, environment)
                )
            )
            with _environment(environment):  # inherited by the process
                pools[name].submit(os.getpid).result()
        turns = [(k, beside) for k in range(rounds + 1) for beside in (0, num_busy)]
        for k, beside in track(turns, f"busy, size={size}", transient=True):
            with _busy_processes(beside):
                for name, pool in pools.items():
                    rate = pool.submit(_train).result()
                    if k:  # the first round does not count
                        rates.setdefault((beside, name), []).append(rate)
    rows = []
    for beside in (0, num_busy):
        title = (
            f"busy: size={size}, batch {batch_size}, {num_cpus()} CPUs, "
            f"{beside or 'no'} busy process{'' if beside == 1 else 'es'} beside"
        )
        medians = {name: statistics.median(rates[beside, name]) for name in variants}
        rows += compare(title, medians, "crystals/s")
    return rows


def _variants() -> dict[str, dict[str, str]]:
    """The environment variables of each variant."""
    threads = str(num_cpus())
    return {
        f"torch's default, {threads} threads": {"OMP_NUM_THREADS": threads},
        f"short spin, {threads} threads": {
            "GOMP_SPINCOUNT": SPIN_COUNT, "OMP_NUM_THREADS": threads
        },
        f"passive, {threads} threads": {
            "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": threads
        },
        "1 thread": {"OMP_NUM_THREADS": "1"},
    }  # fmt: skip


@contextmanager
def _environment(content: Mapping[str, str]) -> Iterator[None]:
    """Set these thread variables and no others."""
    before = dict(os.environ)
    for name in (*WAIT_VARIABLES, "OMP_NUM_THREADS"):
        os.environ.pop(name, None)
    os.environ.update(content)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _busy_processes(number: int) -> Iterator[None]:
    processes = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


# In the processes of the variants


class _Work:
    """An epoch of training steps, on a CPU."""

    def __init__(self, dataset: CrystalDataset, size: str, batch_size: int) -> None:
        torch.manual_seed(0)
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = compose("train_vae", [f"size={SIZES[size]}"])
        self.step = make_step(instantiate(cfg.vae_module), has_native_bf16(), True, muon=True)
        self.batches = indexed_batches(dataset, batch_size)
        self.num_batches = -(-len(dataset) // batch_size)

    def __call__(self) -> float:
        """Crystals per second."""
        crystals, start = 0, time.perf_counter()
        for batch in islice(self.batches, self.num_batches):
            self.step(batch)
            crystals += len(batch.num_atoms)
        return crystals / (time.perf_counter() - start)


_work: _Work


def _start(
    dataset: CrystalDataset, size: str, batch_size: int, environment: Mapping[str, str]
) -> None:
    global _work
    if threads := environment.get("OMP_NUM_THREADS"):
        assert torch.get_num_threads() == int(threads)
    assert all(os.environ.get(name) == environment.get(name) for name in WAIT_VARIABLES)
    keep_freed_memory()
    _work = _Work(dataset, size, batch_size)


def _train() -> float:
    return _work()
