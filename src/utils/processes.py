"""Worker processes that start quickly and do not outlive the process that they work for.

This module imports nothing heavy: workers do so too.
"""

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any


def num_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Worker(SpawnProcess):
    """A spawned process that leaves the parent's main script alone.

    multiprocessing imports it in every child, which in training means torch and Lightning, and
    in a script without `if __name__ == "__main__"` means running it again.
    """

    _lock = threading.Lock()

    def start(self) -> None:
        main = vars(sys.modules["__main__"])
        with self._lock:
            hidden: dict[str, Any] = {
                name: main[name] for name in ("__spec__", "__file__") if name in main
            }
            main.update(dict.fromkeys(hidden))
            try:
                super().start()
            finally:
                main.update(hidden)


class WorkerContext(SpawnContext):
    """A context for pools of spawned workers; what they run must be outside the main script."""

    Process = _Worker


def follow_parent() -> None:
    """What a worker of an executor does first: end when its parent does, however that ends.

    What reaches all processes of a job is left to the parent: an interrupt from the keyboard, and
    the signal by which SLURM says that the time is nearly up.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel
        threading.Thread(target=lambda: (wait([sentinel]), os._exit(1)), daemon=True).start()
