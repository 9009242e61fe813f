"""Results appear where they were asked for whole, or not at all, and replace nothing unasked."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from src.utils.errors import UserError


class OutputError(UserError):
    """A place that results cannot be written to; the message names it and says what to do."""


@contextmanager
def new_folder(path: str | Path, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty folder to fill, which takes the name `path` when the block ends well.

    Args:
        path: where the folder is to be. It may exist if it is empty.
        marker: a file that the block writes. Only a folder that has one is ever replaced, so that
            a mistyped path cannot cost more than results of the same kind.
        overwrite: replace such a folder.

    Raises:
        OutputError: if there is something at `path` that is not to be replaced.
    """
    path = Path(path).expanduser().absolute()
    _check_replaceable(path, marker, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    # beside it, so that the last step is a rename
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.partial-", dir=path.parent) as partial:
        folder = Path(partial) / "new"
        folder.mkdir()
        yield folder
        _check_replaceable(path, marker, overwrite)  # again, since that may have taken hours
        if path.exists():
            os.replace(path, Path(partial) / "old")
        os.replace(folder, path)


def _check_replaceable(path: Path, marker: str, overwrite: bool) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise OutputError(f"{path} exists: choose another place, or say overwrite=true")
    if not (path / marker).is_file():
        raise OutputError(
            f"{path} exists and is not replaced even with overwrite=true, since it has no "
            f"{marker} and so holds something else: choose another place"
        )


@contextmanager
def new_file(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Give the path of a file to write, which takes the name `path` when the block ends well.

    Raises:
        OutputError: if there is something at `path` and `overwrite` is not set, or a folder.
    """
    path = Path(path).expanduser().absolute()
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists: choose another name, or say overwrite=true")
    if path.is_dir():
        raise OutputError(f"{path} is a folder: choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    # the name's end decides the format for many writers, so it stays
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
