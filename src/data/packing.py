"""Files packed with gzip, bzip2 or xz, which are read as what they contain."""

import bz2
import gzip
import io
import lzma
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

File = Path | zipfile.Path

_OPENERS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}
PACKED = tuple(_OPENERS)  # suffixes, in lower case

# what reading a damaged packed file raises
UNPACKING_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)


def unpacked_name(name: str) -> str:
    """The name of the file in a packed file: `a.cif` for `a.cif.gz`; the name itself otherwise."""
    suffix = Path(name).suffix
    return name[: -len(suffix)] if suffix.lower() in _OPENERS else name


@contextmanager
def open_unpacked(file: File) -> Iterator[Any]:
    """Open a file, which may be packed or in an archive, for reading its content as bytes."""
    opener = _OPENERS.get(Path(file.name).suffix.lower())
    with file.open("rb") as raw:
        if opener is None:
            yield raw
        elif opener is gzip.GzipFile:
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield unpacked
        else:
            with opener(raw) as unpacked:
                yield unpacked


@contextmanager
def unpacked_path(file: File) -> Iterator[Path]:
    """The path of a file on disk with the content: the file itself, or a temporary copy."""
    if isinstance(file, Path) and Path(file.name).suffix.lower() not in _OPENERS:
        yield file
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, Path(unpacked_name(file.name)).name)
        with open_unpacked(file) as content, path.open("wb") as copy:
            shutil.copyfileobj(content, copy)
        yield path


def open_packed(path: Path) -> TextIO:
    """Open a new text file, packed as its name says."""
    opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(path.suffix.lower(), open)
    return cast(TextIO, opener(path, "wt", encoding="utf-8"))  # type: ignore[operator]


def read_text(file: File) -> str:
    """The content of a text file, which may be packed; bytes that are no UTF-8 are replaced."""
    with (
        open_unpacked(file) as content,
        io.TextIOWrapper(content, encoding="utf-8-sig", errors="replace") as text,
    ):
        return text.read()
