"""Crystals in the files that people keep them in, one by one; and back into the same formats.

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
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import gemmi
import numpy as np
from ase import Atoms
from ase.db.row import AtomsRow
from ase.db.sqlite import SQLite3Database
from ase.io.formats import UnknownFileTypeError
from pymatgen.core import DummySpecies, Lattice, Structure
from pymatgen.io.vasp import Poscar

from src.data.cif import MAX_LATTICE_ENTRY, MIN_VOLUME, Crystal, CrystalError, write_cif
from src.data.readers import (
    ID_COLUMNS,
    SPLITS,
    DataError,
    File,
    Numbers,
    Record,
    columns_of,
    crystal_of,
    is_table,
    iter_rows,
)
from src.data.schema import CrystalBatch

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
_WRITTEN = ("cif", "poscar", "extxyz", "json")

# What a split may be called in a column that says it, in small letters.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

# What splitting needs to know of each crystal rides along as two more numbers. No column of a
# table has such a name by chance.
FILE = ".file"  # place of its file in `StructureReader.sources`
SPLIT = ".split by "  # and the name of a column: place in `SPLITS`

_ROWS = 1000  # of a database in memory at a time
_ENERGIES = ("energy", "free_energy", "magmom")  # of a calculator


@dataclass(frozen=True, slots=True)
class NamedStructure:
    """A crystal and where it was found.

    Attributes:
        id: see `StructureReader`.
        structure: elements in a cell, as in the file; oxidation states and the like are left out.
        source: its file, relative to the folder or zip archive that was read.
    """

    id: str
    structure: Structure
    source: Path


class Skipped(NamedTuple):
    """What could not be read: a file, or a frame of one, and why."""

    where: str
    reason: str


# Reading


@dataclass(frozen=True, slots=True)
class StructureReader:
    """The crystals of a file, of a folder (at any depth) or of a zip archive, in sorted order.

    Files are opened one after the other. The rows of tables and databases and the frames of
    extended XYZ are read one after the other. Hidden files are passed over. A file, frame, row or
    CIF data block that cannot be used is a record with the reason: damaged ones, unknown formats,
    partial occupancies, atoms that are not periodic in three dimensions or of no element, POSCARs
    without elements.

    A crystal's id is what its file gives it as `material_id` or `id`; else the path of its file,
    without suffix, and `-INDEX` where the file holds several.

    Args:
        source: what to read.
        names: properties that ride along: columns of a table, key-value pairs of a database,
            `info` of an extended XYZ, `properties` of JSON; energies where ASE finds them.
        pattern: which files of a folder are read, by their names. An archive is one file of its
            folder; where it is the source itself, the pattern is for what is in it.
        split_column: a further such name whose value is the split of the crystal, as one of
            `SPLIT_NAMES`.
    """

    source: Path
    names: Sequence[str] = ()
    pattern: str = "*"
    split_column: str | None = None

    @property
    def files(self) -> list[Path]:
        if not self.source.is_dir():
            return [self.source]
        return [file for file in sorted(self.source.rglob("*")) if self._wants(file)]

    @property
    def properties(self) -> tuple[str, ...]:
        by_column = () if self.split_column is None else (f"{SPLIT}{self.split_column}",)
        return (*self.names, FILE, *by_column)

    @property
    def sources(self) -> list[str]:
        """The files that are read, as they are named in `Record.file`."""
        return [s.where if isinstance(s, Skipped) else s[1].as_posix() for s in self._leaves()]

    def __iter__(self) -> Iterator[Record]:
        """Yield a record for each crystal, and for each file or part of one that has none.

        Raises:
            DataError: if the source is a table that cannot be read to its end, if no crystal has
                one of the properties, or if one has no split in `split_column`, or an unknown one.
        """
        numbers = Numbers(self.source, self.names)
        any_read = False
        for place, item in enumerate(self._leaves()):
            if isinstance(item, Skipped):
                yield Record(item.where, item.where, reason=item.reason, file=item.where)
                continue
            file, source = item
            names = (*self.names, self.split_column or "")
            for found in _read_file(file, source, numbers.known, names, file == self.source):
                where, values = found.where, found.values
                if found.reason:
                    yield Record(where, found.id, reason=found.reason, file=found.file)
                    continue
                any_read = True
                properties = (*numbers(values, where), float(place))
                if self.split_column is not None:
                    properties += (_split_place(values, self.split_column, where),)
                yield Record(where, found.id, found.cif, properties, found.crystal, file=found.file)
        numbers.warn()
        if any_read:
            numbers.check_known()

    def _wants(self, file: Path) -> bool:
        hidden = _is_hidden(file.relative_to(self.source))
        return not hidden and fnmatchcase(file.name, self.pattern) and file.is_file()

    def _leaves(self) -> Iterator[tuple[File, Path] | Skipped]:
        """Each file with its path relative to the source, archives unpacked."""
        if not self.source.is_dir():
            if self.source.suffix.lower() != ".zip":
                yield self.source, Path(self.source.name)
                return
            for item in _members(self.source, Path()):
                if isinstance(item, Skipped) or fnmatchcase(item[1].name, self.pattern):
                    yield item
            return
        for file in self.files:
            source = file.relative_to(self.source)
            zipped = file.suffix.lower() == ".zip"
            yield from _members(file, source) if zipped else [(file, source)]


def read_structures(path: str | Path) -> tuple[list[NamedStructure], list[Skipped]]:
    """All crystals of a file, or of the files in a folder, and what was skipped.

    Raises:
        DataError: if there is no such path, or no crystal in it.
    """
    found: list[NamedStructure] = []
    skipped: list[Skipped] = []
    for item in iter_structures(path):
        if isinstance(item, Skipped):
            skipped.append(item)
        else:
            found.append(item)
    if not found:
        first = "".join(f"\n  {where}: {reason}" for where, reason in skipped[:5])
        raise DataError(
            f"{path} holds no crystal that can be read{first}\nCIF, POSCAR, extended XYZ, "
            "pymatgen's JSON, CSV and Parquet with a column 'cif', ASE's databases, what else ASE "
            "reads, and zip archives of them are understood."
        )
    return found, skipped


def iter_structures(path: str | Path) -> Iterator[NamedStructure | Skipped]:
    """The crystals that `StructureReader` finds, their cells as given, as pymatgen structures.

    Raises:
        DataError: if there is no such path, or a table that cannot be read to its end.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"there is no file or folder {path}")
    for record in StructureReader(path):
        try:
            structure = to_structure(crystal_of(record))
        except CrystalError as error:
            row = f" ({record.id})" if is_table(record.file) else ""
            yield Skipped(f"{record.where}{row}", str(error))
        else:
            yield NamedStructure(record.id, structure, Path(record.file))


def _split_place(values: Mapping[str, Any], column: str, where: str) -> float:
    split = SPLIT_NAMES.get(str(values.get(column, "")).strip().lower())
    if split is None:
        given = f"is {values[column]!r}" if column in values else "is not there"
        raise DataError(
            f"{where}: {column!r} {given}, where a split is needed: {', '.join(SPLIT_NAMES)}"
        )
    return float(SPLITS.index(split))


def _members(archive: Path, source: Path) -> Iterator[tuple[File, Path] | Skipped]:
    try:
        with zipfile.ZipFile(archive) as opened:
            for name in sorted(opened.namelist()):
                member = Path(name.lstrip("/"))  # below `source`, whatever the archive says
                if not (name.endswith("/") or _is_hidden(member)):
                    yield zipfile.Path(opened, name), source / member
    except (zipfile.BadZipFile, OSError) as error:
        yield Skipped(archive.name, _reason(error))


def _is_hidden(source: Path) -> bool:
    return any(part.startswith(".") for part in source.parts)  # `..` too


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
class _Found:
    """A `Record` before its values are numbers."""

    where: str
    id: str
    file: str
    cif: str
    crystal: Crystal | None
    reason: str
    values: Mapping[str, Any]


def _read_file(
    file: File, source: Path, known: set[str], names: Sequence[str], alone: bool
) -> Iterator[_Found]:
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
                reason = _reason(error)
        where = str(source)
        if several or frame.row:
            where += f" row {index}" if frame.row else f", frame {index}"
        id_ = frame.id
        if id_ is None:
            id_ = f"{stem}-{index}" if several else stem
        yield _Found(where, id_, source.as_posix(), frame.cif, crystal, reason, frame.values)


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
        yield _Frame(reason=_reason(error))


def _parse(file: File, known: set[str], names: Sequence[str]) -> Iterator[_Frame]:
    kind = _format(file.name)
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


def _format(name: str) -> str | None:
    """Of `_FORMATS`, or None for what is left to ASE."""
    name = name.removesuffix(".gz")
    by_suffix = _FORMATS.get(Path(name).suffix.lower())
    return by_suffix or ("poscar" if re.search("POSCAR|CONTCAR", name) else None)


def _stem(name: str) -> str:
    name = name.removesuffix(".gz")
    known = Path(name).suffix.lower() in _FORMATS or _format(name) is None
    return Path(name).stem if known else name  # POSCAR.mp-149 has no suffix


def _reason(error: Exception) -> str:
    if isinstance(error, UnknownFileTypeError):
        return "of no format that pymatgen or ASE knows"
    said = " ".join(str(error).split())
    return said if isinstance(error, CrystalError) else f"{type(error).__name__}: {said}"


# Writing


def written_name(source: Path) -> Path:
    """The name under which the crystals of a file are written: its own, or with `.extxyz` behind
    where its format is one that is only read."""
    return source if _format(source.name) in _WRITTEN else source.with_name(f"{source.name}.extxyz")


def write_structures(path: Path, structures: Sequence[Structure], ids: Sequence[str]) -> None:
    """Write crystals to one file, in the format that its name says.

    Args:
        path: `.cif`, `.extxyz` or `.xyz`, `.json`, or a POSCAR (`.vasp`, `.poscar`, or any name
            with POSCAR or CONTCAR in it); `.gz` may follow.
        structures: at least one, and no more than that for a POSCAR.
        ids: their names, as `data_` in a CIF, `id` in an extended XYZ, and comment in a POSCAR;
            JSON has no place for them.

    Raises:
        ValueError: for a name of no such format, or several structures in a POSCAR.
        CrystalError: for a crystal that the format cannot hold.
    """
    kind = _format(path.name)
    if kind not in _WRITTEN:
        raise ValueError(f"{path}: no format that crystals are written in has such a name")
    if kind == "poscar" and len(structures) > 1:
        raise ValueError(f"{path}: a POSCAR holds one crystal, not {len(structures)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if path.name.endswith(".gz") else open
    crystals = [to_crystal(structure) for structure in structures]
    with opened(path, "wt", encoding="utf-8") as file:
        if kind == "cif":
            file.writelines(write_cif(*pair) for pair in zip(crystals, ids, strict=True))
        elif kind == "extxyz":
            named = [to_atoms(*pair) for pair in zip(crystals, ids, strict=True)]
            ase.io.write(file, named, format="extxyz")
        elif kind == "poscar":
            poscar = Poscar(to_structure(crystals[0]), comment=ids[0])
            file.write(poscar.get_str(significant_figures=16))
        else:
            content = [to_structure(crystal).as_dict() for crystal in crystals]
            json.dump(content if len(content) > 1 else content[0], file)


# From one form to another


def to_crystal(given: Structure | Atoms) -> Crystal:
    """The elements, cell and coordinates (wrapped into the cell) of a structure.

    Raises:
        CrystalError: for partial occupancies, a site of no element, no atoms, what is not periodic
            in three dimensions, or what `check_numbers` refuses.
    """
    if isinstance(given, Atoms):
        if not given.pbc.all() or not given.cell.volume >= MIN_VOLUME:
            raise CrystalError("not periodic in three dimensions")
        sites = given.info.get("occupancy", {}).values()  # as ASE keeps what a CIF says
        if any(set(site.values()) != {1.0} for site in sites):
            raise CrystalError("partial occupancies: not an ordered crystal")
        atom_types, lattice = given.numbers.astype(np.int64), given.cell.array
        frac_coords = given.cell.scaled_positions(given.positions)
    else:
        if not all(given.lattice.pbc):
            raise CrystalError("not periodic in three dimensions")
        if not given.is_ordered:
            raise CrystalError("partial occupancies: not an ordered crystal")
        # the Z of a dummy species is a hash
        species = [0 if isinstance(s, DummySpecies) else s.Z for s in given.species]
        atom_types, lattice = np.array(species, dtype=np.int64), given.lattice.matrix
        frac_coords = given.frac_coords
    if not len(atom_types):
        raise CrystalError("no atoms")
    if atom_types.min() < 1:
        raise CrystalError("an atom of no element")
    crystal = Crystal(lattice, atom_types, frac_coords % 1.0 % 1.0)  # -1e-17 % 1.0 is 1.0
    check_numbers(crystal)
    return crystal


def to_structure(crystal: Crystal) -> Structure:
    """As a pymatgen `Structure`."""
    return Structure(Lattice(crystal.lattice), crystal.atom_types.tolist(), crystal.frac_coords)


def to_atoms(crystal: Crystal, id: str | None = None) -> Atoms:
    """As ASE `Atoms`, with `info["id"]` if one is given."""
    return Atoms(
        numbers=crystal.atom_types,
        scaled_positions=crystal.frac_coords,
        cell=crystal.lattice,
        pbc=True,
        info={} if id is None else {"id": id},
    )


def split_batch(batch: CrystalBatch) -> list[Crystal]:
    """The crystals of a batch, whatever their numbers are."""
    batch = batch.to("cpu")
    cuts = batch.ptr[1:-1].tolist()
    return [
        Crystal(*arrays)
        for arrays in zip(
            batch.lattices.double().numpy(),
            np.split(batch.atom_types.numpy(), cuts),
            np.split(batch.frac_coords.double().numpy(), cuts),
            strict=True,
        )
    ]


def check_numbers(crystal: Crystal) -> None:
    """Refuse a crystal that no file can hold.

    Raises:
        CrystalError: for numbers that are not finite, or a cell that is huge or without volume.
    """
    if not np.isfinite(crystal.frac_coords).all():
        raise CrystalError("a coordinate is not finite")
    if not np.abs(crystal.lattice).max() < MAX_LATTICE_ENTRY:
        raise CrystalError(f"a lattice entry is not a number below {MAX_LATTICE_ENTRY:g} Å")
    if not (volume := abs(np.linalg.det(crystal.lattice))) >= MIN_VOLUME:
        raise CrystalError(f"the cell has no volume ({volume:.1e} Å^3)")
