"""Limit how the threads of this process compete for the CPUs.

This module does not import torch, which reads the environment only once, when it is loaded.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from src.utils.errors import UserError

# Variables that control how threads wait: OpenMP's own, and those of the GNU and LLVM runtimes
WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SPIN_COUNT = "5000"  # iterations of the waiting loop


def limit_spinning() -> None:
    """Make waiting threads sleep after a short spin. Call this before torch is loaded.

    By default, a waiting thread of GNU OpenMP, which torch uses on Linux, spins for milliseconds.
    That is fast as long as each thread has a core to itself. But if other work is running, spinning
    threads can occupy the core that the thread they wait for needs, and training becomes several
    times slower. Sleeping immediately would cost a third of the speed on an otherwise idle machine;
    a short spin costs next to nothing there (`scripts/benchmark.py busy`).

    Child processes inherit the setting. Variables that the user has set are kept.
    """
    if not any(name in os.environ for name in WAIT_VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT


@contextmanager
def at_most_threads(number: int | None) -> Iterator[None]:
    """Limit torch to at most `number` threads during the block.

    It uses fewer if OMP_NUM_THREADS is lower or there are fewer cores. Processes started in the
    block inherit the limit.

    Args:
        number: at least 1; None for torch's default.

    Raises:
        UserError: if it is less than 1.
    """
    if number is None:
        yield
        return
    if number < 1:
        raise UserError(f"num_threads must be at least 1 (null: torch's default), not {number}")
    import torch

    threads, variable = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(min(number, threads))
    os.environ["OMP_NUM_THREADS"] = str(min(number, threads))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if variable is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = variable
