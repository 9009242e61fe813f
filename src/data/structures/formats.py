"""The crystals of one file, whatever its format.

CIF is read by `src.data.cif`, tables with a column of CIFs by `src.data.readers`, POSCAR and JSON
in pymatgen's form as pymatgen does, extended XYZ, ASE's databases and all other formats by ASE.
Nothing in a file is ever executed.
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

from src.data.cif import Crystal, CrystalError
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
_ROWS = 1000  # of a database in memory at a time
_ENERGIES = ("energy", "free_energy", "magmom")  # of a calculator


@dataclass(frozen=True, slots=True)
class _Frame:
    """A crystal in a file: its CIF text, or what makes it, or why there is none.

    Attributes:
        id: its own, if it has one.
        values: what it carries, by name.
        row: whether it is a row of a table.
    """

    cif: str = ""
    read: Callable[[], Crystal] | None = None
    reason: str = ""
    id: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    row: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """A `Record` before its values are numbers."""

    where: str
    id: str
    file: str
    cif: str
    crystal: Crystal | None
    reason: str
    values: Mapping[str, Any]


def read_file(
    file: File, source: Path, known: set[str], names: Sequence[str], alone: bool
) -> Iterator[Found]:
    """Each crystal of a file.

    Args:
        source: its relative path.
        known: gets the names of all that a crystal carries.
        names: of what is wanted of a table.
        alone: whether it is all that is read; then a table that breaks off is an error.
    """
    frames = _frames(file, known, names, alone)
    first = list(islice(frames, 2))  # two are enough to know whether there are several
    several = len(first) > 1
    stem = source.with_name(_stem(source.name)).as_posix()
    for index, frame in enumerate(chain(first, frames)):
        crystal, reason = None, frame.reason
        if frame.read is not None:
            try:
                crystal = frame.read()
            except Exception as error:
                reason = reason_of(error)
        where = str(source)
        if several or frame.row:
            where += f" row {index}" if frame.row else f", frame {index}"
        id_ = frame.id
        if id_ is None:
            id_ = f"{stem}-{index}" if several else stem
        yield Found(where, id_, source.as_posix(), frame.cif, crystal, reason, frame.values)


def _frames(file: File, known: set[str], names: Sequence[str], alone: bool) -> Iterator[_Frame]:
    """Of each crystal of a file; one with the reason where it cannot be read on."""
    try:
        for frame in _parse(file, known, names):
            known.update(frame.values)
            yield frame
    except DataError as error:
        if alone:
            raise
        yield _Frame(reason=" ".join(str(error).split()))
    except Exception as error:  # parsers of other people's files raise anything
        yield _Frame(reason=reason_of(error))


def _parse(file: File, known: set[str], names: Sequence[str]) -> Iterator[_Frame]:
    kind = format_of(file.name)
    if kind == "table":
        known.update(set(columns_of(file)) - {"cif", *ID_COLUMNS})
        for row in iter_rows(file, names):
            yield _Frame(row.cif, id=row.id, values=row.values, row=True)
        return
    if kind is None or kind == "db":
        if isinstance(file, Path):
            yield from _of_database(file) if kind else map(_of_atoms, ase.io.iread(file, ":"))
        elif kind is None:
            raise ValueError("a format that is not read from archives")
        else:
            with tempfile.TemporaryDirectory() as folder:
                with file.open("rb") as packed, Path(folder, "x.db").open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
                yield from _of_database(Path(folder, "x.db"))
        return
    with file.open("rb") as raw:
        opened: Any = gzip.GzipFile(fileobj=raw) if file.name.endswith(".gz") else raw
        with io.TextIOWrapper(opened, encoding="utf-8-sig", errors="replace") as stream:
            if kind == "extxyz":
                yield from map(_of_atoms, ase.io.iread(stream, ":", format="extxyz"))
                return
            text = stream.read()
    if kind == "cif":
        for block in _cif_blocks(text):
            yield _Frame(block)
    elif kind == "poscar":
        yield _Frame(read=partial(_read_poscar, text))
    else:
        content = json.loads(text)
        yield from map(_of_dict, content if isinstance(content, list) else [content])


def _of_atoms(atoms: Atoms) -> _Frame:
    results = atoms.calc.results if atoms.calc is not None else {}
    values = {**_scalars(results), **_scalars(atoms.info)}
    return _Frame(read=partial(to_crystal, atoms), id=_own_id(values), values=values)


class _ReadOnlyDatabase(SQLite3Database):
    """ASE makes its tables in a database that has none."""

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(f"{Path(str(self.filename)).absolute().as_uri()}?mode=ro", uri=True)


def _of_database(file: Path) -> Iterator[_Frame]:
    # without `with`, ASE opens a connection per query and leaves it open
    with _ReadOnlyDatabase(str(file), use_lock_file=False) as database:
        last = 0
        while rows := list(database.select(f"id>{last}", limit=_ROWS, include_data=False)):
            for row in rows:
                energies = {name: row.get(name) for name in _ENERGIES if name in row}
                values = {**_scalars(energies), **_scalars(row.key_value_pairs)}
                yield _Frame(read=partial(_read_row, row), id=_own_id(values), values=values)
            last = rows[-1].id


def _read_row(row: AtomsRow) -> Crystal:
    # row.toatoms() would make constraints and calculators of what the file says
    return to_crystal(Atoms(row["numbers"], row["positions"], cell=row["cell"], pbc=row["pbc"]))


def _of_dict(content: Any) -> _Frame:
    values: dict[str, Any] = {}
    if isinstance(content, dict) and isinstance(content.get("structure"), dict):  # of an entry
        values, content = _scalars(content), content["structure"]
    if isinstance(content, dict) and isinstance(content.get("properties"), dict):
        values |= _scalars(content["properties"])
    return _Frame(read=partial(_read_dict, content), id=_own_id(values), values=values)


def _scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    kinds = (str, int, float, np.generic)
    return {str(key): value for key, value in values.items() if isinstance(value, kinds)}


def _own_id(values: dict[str, Any]) -> str | None:
    """Taken out of the values, of which it is none."""
    ids = [values.pop(name, None) for name in ("id", "material_id")]
    return next((str(id_) for id_ in ids if id_ is not None), None)


def _cif_blocks(text: str) -> list[str]:
    """The data blocks with atoms, as texts; all of the text where there is only one."""
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
        raise CrystalError("the JSON is no pymatgen Structure or list of them")
    # pymatgen would import whatever a site's properties name
    sites = [{"species": s["species"], "abc": s["abc"]} for s in content["sites"]]
    lattice = {
        key: content["lattice"][key] for key in ("matrix", "pbc") if key in content["lattice"]
    }
    return to_crystal(Structure.from_dict({"lattice": lattice, "sites": sites}))


def format_of(name: str) -> str | None:
    """Of `_FORMATS`, or None for what is left to ASE."""
    name = name.removesuffix(".gz")
    by_suffix = _FORMATS.get(Path(name).suffix.lower())
    return by_suffix or ("poscar" if re.search("POSCAR|CONTCAR", name) else None)


def _stem(name: str) -> str:
    name = name.removesuffix(".gz")
    known = Path(name).suffix.lower() in _FORMATS or format_of(name) is None
    return Path(name).stem if known else name  # POSCAR.mp-149 has no suffix


def reason_of(error: Exception) -> str:
    if isinstance(error, UnknownFileTypeError):
        return "of no format that pymatgen or ASE knows"
    said = " ".join(str(error).split())
    return said if isinstance(error, CrystalError) else f"{type(error).__name__}: {said}"
