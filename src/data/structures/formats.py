"""Read the crystals in one file of any supported format.

CIF is read by `src.data.cif`, tables with a CIF column by `src.data.readers`, POSCAR and pymatgen
JSON by pymatgen, and extended XYZ, ASE databases and all other formats by ASE. Nothing in a file is
ever executed.
"""

import gzip
import io
import json
import re
import shutil
import sqlite3
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import ase.io
import gemmi
import numpy as np
from ase import Atoms
from ase.db.row import AtomsRow
from ase.db.sqlite import SQLite3Database
from ase.io.formats import UnknownFileTypeError
from pymatgen.core import Structure
from pymatgen.io.vasp import Poscar

from src.data.crystal import Crystal, CrystalError
from src.data.readers import ID_COLUMNS, DataError, File, columns_of, iter_rows
from src.data.structures.convert import to_crystal

_FORMATS = {
    ".cif": "cif",
    ".vasp": "poscar",
    ".poscar": "poscar",
    ".xyz": "extxyz",
    ".extxyz": "extxyz",
    ".json": "json",
    ".csv": "table",
    ".parquet": "table",
    ".db": "db",
}
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
        available.update(set(columns_of(file)) - {"cif", *ID_COLUMNS})
        for row in iter_rows(file, names):
            yield _Entry(row.cif, id=row.id, values=row.values, is_row=True)
        return
    if kind is None or kind == "db":
        if isinstance(file, Path):
            if kind == "db":
                yield from _entries_from_database(file)
            else:
                yield from map(_entry_from_atoms, ase.io.iread(file, ":"))
        elif kind is None:
            raise CrystalError("files of this format are not read from archives: unpack it")
        else:
            with tempfile.TemporaryDirectory() as folder:
                with file.open("rb") as packed, Path(folder, "x.db").open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
                yield from _entries_from_database(Path(folder, "x.db"))
        return
    with file.open("rb") as raw:
        opened: Any = gzip.GzipFile(fileobj=raw) if file.name.endswith(".gz") else raw
        with io.TextIOWrapper(opened, encoding="utf-8-sig", errors="replace") as stream:
            if kind == "extxyz":
                yield from map(_entry_from_atoms, ase.io.iread(stream, ":", format="extxyz"))
                return
            text = stream.read()
    if kind == "cif":
        for block in _cif_blocks(text):
            yield _Entry(block)
    elif kind == "poscar":
        yield _Entry(read=partial(_read_poscar, text))
    else:
        content = json.loads(text)
        yield from map(_entry_from_json, content if isinstance(content, list) else [content])


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
        while rows := list(
            database.select(f"id>{last}", limit=_ROWS_PER_QUERY, include_data=False)
        ):
            for row in rows:
                results = {name: row.get(name) for name in _CALCULATOR_RESULTS if name in row}
                values = {**_scalars(results), **_scalars(row.key_value_pairs)}
                yield _Entry(read=partial(_read_row, row), id=_pop_id(values), values=values)
            last = rows[-1].id


def _read_row(row: AtomsRow) -> Crystal:
    # row.toatoms() would also create the constraints and calculators that the file describes
    return to_crystal(Atoms(row["numbers"], row["positions"], cell=row["cell"], pbc=row["pbc"]))


def _entry_from_json(content: Any) -> _Entry:
    values: dict[str, Any] = {}
    if isinstance(content, dict) and isinstance(content.get("structure"), dict):
        values, content = _scalars(content), content["structure"]
    if isinstance(content, dict) and isinstance(content.get("properties"), dict):
        values |= _scalars(content["properties"])
    return _Entry(read=partial(_read_dict, content), id=_pop_id(values), values=values)


def _scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    kinds = (str, int, float, np.generic)
    return {str(key): value for key, value in values.items() if isinstance(value, kinds)}


def _pop_id(values: dict[str, Any]) -> str | None:
    """Remove the ID from the values, since it is not a property, and return it."""
    ids = [values.pop(name, None) for name in ("id", "material_id")]
    return next((str(id_) for id_ in ids if id_ is not None), None)


def _cif_blocks(text: str) -> list[str]:
    """The text of each data block that has atoms; the whole text if there is only one."""
    if len(re.findall(r"^data_", text, flags=re.MULTILINE | re.IGNORECASE)) < 2:
        return [text]
    blocks = [b for b in gemmi.cif.read_string(text) if b.find_values("_atom_site_fract_x")]
    return [block.as_string() for block in blocks] if len(blocks) > 1 else [text]


def _read_poscar(text: str) -> Crystal:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        poscar = Poscar.from_str(text, read_velocities=False)
    if not poscar.true_names:
        raise CrystalError("the POSCAR does not say which elements: give their symbols in line 6")
    return to_crystal(poscar.structure)


def _read_dict(content: Any) -> Crystal:
    if not isinstance(content, dict) or not {"lattice", "sites"} <= content.keys():
        raise CrystalError("the JSON is not a pymatgen Structure or a list of them")
    # without properties of the sites, in which pymatgen imports any class that they name
    sites = [{"species": s["species"], "abc": s["abc"]} for s in content["sites"]]
    lattice = {
        key: content["lattice"][key] for key in ("matrix", "pbc") if key in content["lattice"]
    }
    return to_crystal(Structure.from_dict({"lattice": lattice, "sites": sites}))


def format_of(name: str) -> str | None:
    """The format for a file name, a value of `_FORMATS`; None if ASE is to detect it."""
    name = name.removesuffix(".gz")
    by_suffix = _FORMATS.get(Path(name).suffix.lower())
    return by_suffix or ("poscar" if re.search("POSCAR|CONTCAR", name) else None)


def _stem(name: str) -> str:
    name = name.removesuffix(".gz")
    known = Path(name).suffix.lower() in _FORMATS or format_of(name) is None
    return Path(name).stem if known else name  # POSCAR.mp-149 has no suffix


def reason_of(error: Exception) -> str:
    """The reason for rejecting a crystal or file, in one line."""
    if isinstance(error, UnknownFileTypeError):
        return "not in a format that pymatgen or ASE can read"
    message = " ".join(str(error).split())
    return message if isinstance(error, CrystalError) else f"{type(error).__name__}: {message}"
