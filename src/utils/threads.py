"""How the threads of this process share the CPUs with other work.

This module does not import torch, which reads the environment only once, when it is loaded.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from src.utils.errors import UserError

# What says how threads wait: the standard's own, and those of GNU's and of LLVM's OpenMP
WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SPIN_COUNT = "5000"  # iterations of the waiting loop


def limit_spinning() -> None:
    """Let threads that wait for each other sleep soon; to be called before torch is loaded.

    By default, a waiting thread of GNU's OpenMP, which torch uses on Linux, spins for milliseconds.
    That is fast as long as each thread has a core to itself. Next to any other work, the spinning
    threads take the core from the very thread that they wait for, and training slows down several
    times. Threads that sleep at once cost a third of the speed of an otherwise idle machine. A
    short spin costs next to nothing there (`scripts/benchmark.py busy`).

    Processes that this one starts inherit the setting. What the user's environment says is kept.
    """
    if not any(name in os.environ for name in WAIT_VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT


@contextmanager
def at_most_threads(number: int | None) -> Iterator[None]:
    """Let torch compute with no more than `number` threads during the block.

    It has fewer where OMP_NUM_THREADS allows fewer, or there are fewer cores. Processes that the
    block starts are told the same.

    Args:
        number: at least 1; None: as many as torch has.

    Raises:
        UserError: if it is less than 1.
    """
    if number is None:
        yield
        return
    if number < 1:
        raise UserError(
            f"num_threads must be at least 1 (null: as many as torch has), not {number}"
        )
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
