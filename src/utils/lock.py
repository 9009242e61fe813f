"""One run per folder."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from src.utils.output import OutputError


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder while the block runs.

    The lock is the operating system's, which takes it back from a process that is killed.

    Raises:
        OutputError: if another process has it; the message says which, and on which machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / ".lock"), folder / ".lock_holder"
    try:
        held = lock.acquire(timeout=0)
    except Timeout as error:
        who = holder.read_text() if holder.is_file() else "another process"
        raise OutputError(
            f"{folder} is in use by {who}: wait for it or stop it, or choose another folder with "
            "hydra.run.dir"
        ) from error
    with held:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
