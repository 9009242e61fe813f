"""Lock a folder, so that only one run uses it at a time."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from src.utils.output import OutputError


@contextmanager
def lock_folder(folder: Path, option: str = "hydra.run.dir") -> Iterator[None]:
    """Lock a folder against other runs while the block runs.

    The operating system releases the lock if the process is killed.

    Args:
        folder: is created if needed.
        option: with which the user chooses the folder, for the message.

    Raises:
        OutputError: if another process holds the lock; the message names the process and machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / ".lock"), folder / ".lock_holder"
    try:
        held = lock.acquire(timeout=0)
    except Timeout as error:
        who = holder.read_text() if holder.is_file() else "another process"
        raise OutputError(
            f"{folder} is in use by {who}: wait for it or stop it, or choose another folder with "
            f"{option}"
        ) from error
    with held:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
