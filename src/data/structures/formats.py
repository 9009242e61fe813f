"""Read the crystals in one file of any supported format, packed or not.

Each format has one reader, whatever the case of the file's ending: CIF, also for SHELX and PDB
files, is read by `src.data.cif`; tables by `src.data.readers`; JSON by `src.data.exchange`; POSCAR
and extended XYZ in this folder; ASE databases, and formats in which files list all atoms of a cell,
by ASE. Nothing in a file is ever executed.
"""

import io
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.db.row import AtomsRow
from ase.db.sqlite import SQLite3Database
from ase.io.formats import UnknownFileTypeError, filetype, ioformats

from src.data.cif import has_site_table, parse_cif
from src.data.crystal import Crystal, CrystalError
from src.data.exchange import crystal_of_content, find_entries, load_json
from src.data.packing import open_unpacked, read_text, unpacked_name, unpacked_path
from src.data.readers import ID_COLUMNS, DataError, File, columns_of, iter_rows
from src.data.structures.convert import to_crystal
from src.data.structures.extxyz import id_of_frame, parse_frame, split_frames
from src.data.structures.pdb import cifs_of_pdb
from src.data.structures.poscar import read_poscar
from src.data.structures.shelx import cifs_of_res

_FORMATS = {
    ".cif": "cif",
    ".mcif": "cif",
    ".vasp": "poscar",
    ".poscar": "poscar",
    ".contcar": "poscar",
    ".xyz": "extxyz",
    ".extxyz": "extxyz",
    ".json": "json",
    ".jsonl": "json lines",
    ".ndjson": "json lines",
    ".csv": "table",
    ".parquet": "table",
    ".db": "db",
    ".res": "res",
    ".ins": "res",
    ".pdb": "pdb",
    ".ent": "pdb",
}
# ASE's names of formats that are read as one of ours
_OURS = {
    "cif": "cif", "vasp": "poscar", "xyz": "extxyz", "extxyz": "extxyz", "json": "json",
    "db": "db", "res": "res", "shelx": "res", "proteindatabank": "pdb",
}  # fmt: skip
# Formats in which a file names its elements and lists all atoms of a cell that it gives. In others,
# ASE would leave out atoms (of the rest of the cell), occupancies, or the elements.
_READ_BY_ASE = frozenset((
    "abinit-gsr", "abinit-out", "aims", "aims-output", "bundletrajectory", "castep-castep",
    "castep-cell", "castep-geom", "castep-md", "cfg", "cp2k-restart", "cube", "dftb", "dlp4",
    "elk", "elk-in", "espresso-in", "espresso-out", "exciting", "gen", "gpaw-out", "gpw",
    "magres", "netcdftrajectory", "octopus-in", "onetep-in", "onetep-out", "qbox", "rmc6f",
    "siesta-xv", "traj", "v-sim", "vasp-out", "vasp-xdatcar", "vasp-xml", "xsf",
))  # fmt: skip
_OTHER_PACKERS = (".7z", ".lz4", ".lzma", ".rar", ".tar", ".tgz", ".tbz2", ".txz", ".z", ".zst")
_SYMBOL = re.compile(r"[A-Z][a-z]{0,2}\d*", re.ASCII)
_HEAD = 2**20  # characters in which a CIF gives its cell
_SPACE_GROUP_OF_ESPRESSO = re.compile(r"^[^!]*\bspace_group\s*=\s*[1-9]", re.I | re.M)
_ROWS_PER_QUERY = 1000  # of a database; limits memory
_CALCULATOR_RESULTS = ("energy", "free_energy", "magmom")  # scalar ones that ASE databases store


@dataclass(frozen=True, slots=True)
class _Entry:
    """One crystal in a file: a frame, a table row, a database row or a data block.

    Attributes:
        cif: its CIF text, if the format contains one.
        read: otherwise, a function that returns the crystal.
        reason: why the crystal cannot be read, if there is neither.
        id: the ID in the file, if there is one.
        values: properties in the file, by name.
        is_row: whether it is a row of a table.
    """

    cif: str = ""
    read: Callable[[], Crystal] | None = None
    reason: str = ""
    id: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    is_row: bool = False


@dataclass(frozen=True, slots=True)
class RawRecord:
    """Like `src.data.readers.Record`, but with all properties, as they are in the file."""

    where: str
    id: str
    file: str
    cif: str
    crystal: Crystal | None
    reason: str
    values: Mapping[str, Any]


def read_file(
    file: File, source: Path, available: set[str], names: Sequence[str], is_only_file: bool
) -> Iterator[RawRecord]:
    """Yield the crystals in a file.

    Args:
        source: path of the file, relative to the source that is read.
        available: a set to which the names of all properties in the file are added.
        names: the columns to read, if the file is a table.
        is_only_file: whether nothing else is read. A truncated table is then an error; otherwise it
            becomes a record with the reason.
    """
    entries = _entries(file, available, names, is_only_file)
    first = list(islice(entries, 2))  # enough to know whether there are several
    several = len(first) > 1
    stem = source.with_name(_stem(source.name)).as_posix()
    for index, entry in enumerate(chain(first, entries)):
        crystal, reason = None, entry.reason
        if entry.read is not None:
            try:
                crystal = entry.read()
            except Exception as error:
                reason = reason_of(error)
        where = str(source)
        if several or entry.is_row:
            where += f" row {index}" if entry.is_row else f", frame {index}"
        id_ = entry.id
        if id_ is None:
            id_ = f"{stem}-{index}" if several else stem
        yield RawRecord(where, id_, source.as_posix(), entry.cif, crystal, reason, entry.values)


def _entries(
    file: File, available: set[str], names: Sequence[str], is_only_file: bool
) -> Iterator[_Entry]:
    """Yield the entries of a file. If it cannot be read to its end, the last one has the reason."""
    try:
        for entry in _parse(file, available, names):
            available.update(entry.values)
            yield entry
    except DataError as error:
        if is_only_file:
            raise
        yield _Entry(reason=" ".join(str(error).split()))
    except Exception as error:  # third-party parsers raise anything for malformed files
        yield _Entry(reason=reason_of(error))


def _parse(file: File, available: set[str], names: Sequence[str]) -> Iterator[_Entry]:
    kind = format_of(file.name)
    if kind == "table":
        yield from _entries_from_table(file, available, names)
    elif kind == "extxyz":
        with (
            open_unpacked(file) as content,
            io.TextIOWrapper(content, encoding="utf-8-sig", errors="replace") as stream,
        ):
            yield from map(_entry_from_frame, split_frames(stream))
    elif kind == "json lines":
        with (
            open_unpacked(file) as content,
            io.TextIOWrapper(content, encoding="utf-8-sig", errors="replace") as stream,
        ):
            yield from _entries_from_json_lines(stream)
    elif kind in _TEXT_READERS:
        yield from _TEXT_READERS[kind](read_text(file))
    else:
        with unpacked_path(file) as path:
            if kind == "db":
                yield from _entries_from_database(path)
            else:
                yield from _entries_from_ase(path)


def _entries_from_ase(path: Path) -> Iterator[_Entry]:
    """The entries of a file whose name does not tell its format."""
    if path.suffix.lower() in _OTHER_PACKERS:
        raise CrystalError(
            f"packed as {path.suffix}, which is not read: unpack it, or use .gz, .bz2, .xz or .zip"
        )
    try:
        detected = filetype(str(path))
    except UnknownFileTypeError:
        detected = ""
    if detected not in ioformats:  # ASE gives the ending of a file that it does not know
        if _looks_like_cif(path):
            yield from _entries_from_cif(read_text(path))
            return
        raise UnknownFileTypeError(detected)
    if (kind := _OURS.get(detected)) in _TEXT_READERS:
        yield from _TEXT_READERS[kind](read_text(path))
    elif kind == "extxyz":
        with path.open(encoding="utf-8-sig", errors="replace") as stream:
            yield from map(_entry_from_frame, split_frames(stream))
    elif kind == "db":
        yield from _entries_from_database(path)
    elif detected in _READ_BY_ASE:
        if detected == "castep-cell" and "MIXTURE" in read_text(path).upper():
            raise CrystalError("partial occupancies: not an ordered crystal")
        if detected == "espresso-in" and _SPACE_GROUP_OF_ESPRESSO.search(read_text(path)):
            raise CrystalError(
                "space_group is for a file that lists the asymmetric unit, which is not supported: "
                "list all atoms of the cell, without space_group"
            )
        yield from map(_entry_from_atoms, ase.io.iread(path, ":", format=detected))
    else:
        raise CrystalError(
            f"files in ASE's format {detected!r} are not read, since they need not list all atoms "
            "of the cell with their elements: convert it to CIF or extended XYZ"
        )


def _looks_like_cif(path: Path) -> bool:
    """Whether a file with an unknown ending begins like a CIF with a cell."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        text = file.read(_HEAD)
    begins = re.match(r"(?:\s|#.*\n)*data_", text, re.IGNORECASE) is not None
    return begins and re.search(r"^\s*_cell[_.]length_a\s", text, re.I | re.M) is not None


def _entries_from_table(file: File, available: set[str], names: Sequence[str]) -> Iterator[_Entry]:
    available.update(set(columns_of(file)) - {"cif", *ID_COLUMNS})
    for row in iter_rows(file, names):
        read = None if row.content is None else partial(crystal_of_content, row.content)
        yield _Entry(row.cif, read, id=row.id, values=row.values, is_row=True)


def _entries_from_cif(text: str) -> Iterator[_Entry]:
    yield from map(_Entry, _cif_blocks(text))


def _entries_from_poscar(text: str) -> Iterator[_Entry]:
    yield _Entry(read=partial(read_poscar, text))


def _entries_from_cif_texts(
    convert: Callable[[str], Iterator[str | CrystalError]], text: str
) -> Iterator[_Entry]:
    for each in convert(text):
        yield _Entry(each) if isinstance(each, str) else _Entry(reason=str(each))


def _entries_from_json(text: str) -> Iterator[_Entry]:
    try:
        content = load_json(text)
    except ValueError as error:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2 or not all(line.lstrip().startswith("{") for line in lines[:2]):
            raise CrystalError(f"JSONDecodeError: {error}") from error
        yield from _entries_from_json_lines(lines)
        return
    yield from _entries_from_content(content)


def _entries_from_json_lines(lines: Iterable[str]) -> Iterator[_Entry]:
    """The entries of lines that have a JSON value each, or are one JSON text with line breaks."""
    lines = (line for line in lines if line.strip())
    first = next(lines, "")
    try:
        load_json(first)
    except ValueError:
        lines = [first, *lines]
        with suppress(ValueError):
            yield from _entries_from_content(load_json("".join(lines)))
            return
    else:
        lines = chain([first], lines)
    for line in lines:
        try:
            content = load_json(line)
        except ValueError as error:
            yield _Entry(reason=f"JSONDecodeError: {error}")
        else:
            yield from _entries_from_content(content)


def _entries_from_content(content: Any) -> Iterator[_Entry]:
    is_empty = True
    for found in find_entries(content):
        is_empty = False
        if isinstance(found.content, str) and "_cell_length_a" in found.content:
            yield _Entry(found.content, id=found.id, values=found.values)
        else:
            read = partial(crystal_of_content, found.content)
            yield _Entry(read=read, id=found.id, values=found.values)
    if is_empty:
        yield _Entry(reason="the JSON has no crystals")


_TEXT_READERS: dict[str | None, Callable[[str], Iterator[_Entry]]] = {
    "cif": _entries_from_cif,
    "poscar": _entries_from_poscar,
    "json": _entries_from_json,
    "res": partial(_entries_from_cif_texts, cifs_of_res),
    "pdb": partial(_entries_from_cif_texts, cifs_of_pdb),
}


def _entry_from_frame(lines: list[str]) -> _Entry:
    try:
        entry = _entry_from_atoms(parse_frame(lines))
    except Exception as error:  # ASE raises anything for malformed frames
        return _Entry(reason=reason_of(error), id=id_of_frame(lines))
    written = id_of_frame(lines)
    return entry if written is None else replace(entry, id=written)


def _entry_from_atoms(atoms: Atoms) -> _Entry:
    results = atoms.calc.results if atoms.calc is not None else {}
    values = {**_scalars(results), **_scalars(atoms.info)}
    return _Entry(read=partial(to_crystal, atoms), id=_pop_id(values), values=values)


class _ReadOnlyDatabase(SQLite3Database):
    """Opens the file read-only. ASE would create its tables in a database that lacks them."""

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(f"{Path(str(self.filename)).absolute().as_uri()}?mode=ro", uri=True)


def _entries_from_database(file: Path) -> Iterator[_Entry]:
    # without `with`, ASE opens a connection per query and leaves it open
    with _ReadOnlyDatabase(str(file), use_lock_file=False) as database:
        last = 0
        while ids := _next_ids(database, last):
            try:
                rows: list[AtomsRow] = list(
                    database.select(f"id>{last},id<={ids[-1]}", include_data=False)
                )
                entries = list(map(_entry_from_row, rows))
            except Exception:  # one row is damaged: find it
                entries = [_read_alone(database, id_) for id_ in ids]
            yield from entries
            last = ids[-1]


def _next_ids(database: SQLite3Database, last: int) -> list[int]:
    if not last:
        database.count()  # ASE checks that the file is one of its databases
    query = "SELECT id FROM systems WHERE id > ? ORDER BY id LIMIT ?"
    connection = database.connection
    assert connection is not None
    rows = connection.execute(query, (last, _ROWS_PER_QUERY))
    return [row[0] for row in rows]


def _read_alone(database: SQLite3Database, id_: int) -> _Entry:
    try:
        (row,) = database.select(id=id_, include_data=False)
        return _entry_from_row(row)
    except Exception as error:  # ASE raises anything for a damaged row
        return _Entry(reason=f"damaged row {id_} of the database: {reason_of(error)}")


def _entry_from_row(row: AtomsRow) -> _Entry:
    results = {name: row.get(name) for name in _CALCULATOR_RESULTS if name in row}
    values = {**_scalars(results), **_scalars(row.key_value_pairs)}
    return _Entry(read=partial(_read_row, row), id=_pop_id(values), values=values)


def _read_row(row: AtomsRow) -> Crystal:
    # row.toatoms() would also create the constraints and calculators that the file describes
    return to_crystal(Atoms(row["numbers"], row["positions"], cell=row["cell"], pbc=row["pbc"]))


def _scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    kinds = (str, int, float, np.generic)
    return {str(key): value for key, value in values.items() if isinstance(value, kinds)}


def _pop_id(values: dict[str, Any]) -> str | None:
    """Remove the ID from the values, since it is not a property, and return it."""
    ids = [values.pop(name, None) for name in ("id", "material_id")]
    return next((str(id_) for id_ in ids if id_ is not None), None)


def _cif_blocks(text: str) -> list[str]:
    """The text of each data block that has atoms; the whole text if there is only one.

    Blocks are split before they are parsed, so that a damaged one costs no other, and two may have
    the same name.
    """
    if len(re.findall(r"^\s*data_", text, flags=re.MULTILINE | re.IGNORECASE)) < 2:
        return [text]
    blocks = [block for block in _split_blocks(text) if _is_of_crystal(block)]
    return blocks or [text]


def _split_blocks(text: str) -> list[str]:
    lines = text.splitlines(keepends=True)
    starts, in_field = [], False
    for index, line in enumerate(lines):
        if line.startswith(";"):
            in_field = not in_field
        elif not in_field and _is_header(line):
            starts.append(index)
    if in_field:  # a text field without end would swallow the blocks after it
        starts = [index for index, line in enumerate(lines) if _is_header(line)]
    stops = [*starts[1:], len(lines)]
    return ["".join(lines[i:j]) for i, j in zip(starts, stops, strict=True)]


def _is_header(line: str) -> bool:
    return line.lstrip()[:5].lower() == "data_"


def _is_of_crystal(text: str) -> bool:
    """Whether a block has atoms, or may have had some before it was damaged."""
    if not re.search(r"_atom_site[_.](fract|cartn)_x", text, flags=re.IGNORECASE):
        return False
    try:
        blocks = parse_cif(text)  # the tag may be in a text field
        return any(map(has_site_table, blocks)) or "_cartn_x" in text.lower()
    except CrystalError:
        return True


def format_of(name: str) -> str | None:
    """The format for a file name, a value of `_FORMATS`; None if ASE is to detect it."""
    name = unpacked_name(name)
    by_suffix = _FORMATS.get(Path(name).suffix.lower())
    return by_suffix or ("poscar" if re.search("POSCAR|CONTCAR", name, re.IGNORECASE) else None)


def _stem(name: str) -> str:
    name = unpacked_name(name)
    known = Path(name).suffix.lower() in _FORMATS or format_of(name) is None
    return Path(name).stem if known else name  # POSCAR.mp-149 has no suffix


def reason_of(error: Exception) -> str:
    """The reason for rejecting a crystal or file, in one line."""
    if isinstance(error, UnknownFileTypeError):
        return (
            "not in a format that can be read: use CIF, POSCAR, extended XYZ, JSON, or a table as "
            ".csv or .parquet"
        )
    if isinstance(error, KeyError) and _SYMBOL.fullmatch(str(*error.args[:1])):
        # what ASE raises for a symbol that it does not know
        hint = ": write H for deuterium" if error.args[0] == "D" else ""
        return f"{error.args[0]!r} is not an element{hint}"
    message = " ".join(str(error).split())
    return message if isinstance(error, CrystalError) else f"{type(error).__name__}: {message}"
