"""Write output files and folders atomically, and never overwrite existing ones unless asked to."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from src.utils.errors import UserError


class OutputError(UserError):
    """Results cannot be written to a path; the message names it and says what to do."""


def output_of(cfg: Mapping[str, Any], default: str | Path) -> Path:
    """The folder that a command writes: its `output`, also under the former name `output_dir`.

    Raises:
        OutputError: if both are set.
    """
    given = [cfg[name] for name in ("output", "output_dir") if cfg.get(name) is not None]
    if len(given) > 1:
        raise OutputError("output_dir is the former name of output: set only output")
    return Path(given[0] if given else default).expanduser()


@contextmanager
def new_folder(path: str | Path, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """Provide an empty temporary folder that is renamed to `path` when the block succeeds.

    Args:
        path: the folder to create. It may exist if it is empty.
        marker: name of a file that the block writes. Only folders with this file are replaced, so
            that a mistyped path cannot delete anything but results of the same kind.
        overwrite: whether to replace such a folder.

    Raises:
        OutputError: if `path` exists and must not be replaced.
    """
    path = Path(path).expanduser().absolute()
    _check_replaceable(path, marker, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    # in the same parent folder, so that the last step is a rename
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.partial-", dir=path.parent) as partial:
        folder = Path(partial) / "new"
        folder.mkdir()
        yield folder
        _check_replaceable(path, marker, overwrite)  # again, because hours may have passed
        if path.exists():
            os.replace(path, Path(partial) / "old")
        os.replace(folder, path)


def _check_replaceable(path: Path, marker: str, overwrite: bool) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise OutputError(f"{path} exists: choose another path or set overwrite=true")
    if not (path / marker).is_file():
        raise OutputError(
            f"{path} exists and is not replaced even with overwrite=true, because it has no "
            f"{marker} and so contains something else: choose another path"
        )


@contextmanager
def new_file(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Provide a temporary path to write to; the file is renamed to `path` when the block succeeds.

    Raises:
        OutputError: if `path` is a folder, or exists and `overwrite` is not set.
    """
    path = Path(path).expanduser().absolute()
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists: choose another name or set overwrite=true")
    if path.is_dir():
        raise OutputError(f"{path} is a folder: choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept, because many writers infer the format from it.
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
