"""Split extended XYZ into its frames, so that a damaged frame costs that one alone."""

import io
import re
from collections.abc import Iterator
from typing import TextIO

from ase import Atoms
from ase.data import chemical_symbols
from ase.io.extxyz import read_xyz

from src.data.crystal import CrystalError
from src.data.symbols import ATOMIC_NUMBERS, element_of_type

_COUNT = re.compile(r"\s*\d+\s*", re.ASCII)
_PROPERTIES = re.compile(r'Properties\s*=\s*"?([^\s"]+)', re.IGNORECASE)
_COMMENT = re.compile(r"(?:^|\s)(?:Lattice|Properties)\s*=", re.IGNORECASE)
_ID = re.compile(r"""(?<!\S)(?P<key>id|material_id)=(?:"(?P<quoted>[^"]*)"|(?P<plain>[^\s"]+))""")


def split_frames(stream: TextIO) -> Iterator[list[str]]:
    """Yield the lines of each frame, damaged ones included, without blank lines between them.

    A frame ends where its number of atoms says, or earlier at a line with the number of atoms of
    another frame or before a second line with `Lattice=` or `Properties=`, or later where lines
    follow that are not of another frame.
    """
    frame: list[str] = []
    expected = 0
    for line in stream:
        if not frame:
            if line.strip():
                frame = [line]
                expected = _expected(line)
        elif len(frame) >= 4 and _COMMENT.search(line):  # of a frame whose number cannot be read
            yield frame[:-1]
            frame = [frame[-1], line]
            expected = _expected(frame[0])
        elif len(frame) >= 2 and _COUNT.fullmatch(line):
            yield frame
            frame, expected = [line], _expected(line)
        elif line.strip() or len(frame) < max(expected, 2):
            frame.append(line)
        else:
            yield frame
            frame = []
    if frame:
        yield frame


def _expected(line: str) -> int:
    """How many lines a frame has by its first one; 0 if that is not a number."""
    return int(line) + 2 if _COUNT.fullmatch(line) and len(line) < 20 else 0


def parse_frame(lines: list[str]) -> Atoms:
    """The atoms of a frame. Deuterium is read as hydrogen.

    Raises:
        CrystalError: if the frame does not have the number of atoms that it says, or names an atom
            that is no element.
        Exception: ASE raises many kinds of errors for other damage.
    """
    if not _COUNT.fullmatch(lines[0]) or len(lines[0]) > 20:
        raise CrystalError(f"XYZError: {lines[0].strip()[:40]!r} is not a number of atoms")
    expected, found = int(lines[0]), len(lines) - 2
    if found != expected:
        raise CrystalError(f"XYZError: the frame says {expected} atoms, but has {max(0, found)}")
    if (column := _species_column(lines[1])) is not None:
        lines = [*lines[:2], *(_with_symbol(line, column) for line in lines[2:])]
    text = "".join(lines)
    return next(iter(read_xyz(io.StringIO(text), index=slice(0, 1))))


def id_of_frame(lines: list[str]) -> str | None:
    """The `id` or `material_id` as it is written: ASE would read 007 and 1e5 as numbers."""
    found = {m["key"]: m for m in _ID.finditer(lines[1])} if len(lines) > 1 else {}
    match = found.get("id") or found.get("material_id")
    if match is None:
        return None
    return match["plain"] if match["quoted"] is None else match["quoted"]


def _species_column(comment: str) -> int | None:
    """The column with the symbols of elements; None if there is none, but atomic numbers."""
    found = _PROPERTIES.search(comment)
    if found is None:
        return 0
    parts, column = found[1].split(":"), 0
    for name, width in zip(parts[::3], parts[2::3], strict=False):
        if name.lower() in ("species", "symbols"):
            return column
        column += int(width) if width.isdecimal() else 1
    return None


def _with_symbol(line: str, column: int) -> str:
    """The line of an atom with the plain symbol of its element: ASE takes CO for cobalt."""
    words = line.split()
    if column >= len(words) or (words[column] in ATOMIC_NUMBERS and words[column] != "D"):
        return line
    words[column] = chemical_symbols[element_of_type(words[column], None, ())]
    return f"{' '.join(words)}\n"
