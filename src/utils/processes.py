"""Worker processes that start quickly and end when their parent process ends.

This module imports nothing heavy, because workers import it.
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
    """A spawned process that does not import the parent's main script.

    multiprocessing would import the script in every child. For training, that would import torch
    and Lightning; a script without `if __name__ == "__main__"` would run again.
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
    """Initialize a worker: make it end when its parent ends, however that happens.

    Signals that are sent to all processes of a job are left to the parent: a keyboard interrupt,
    and Slurm's warning that the time limit is near.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel
        threading.Thread(target=lambda: (wait([sentinel]), os._exit(1)), daemon=True).start()
