"""The crystals of a file, a folder or an archive, one by one, wherever they lie in it."""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from pymatgen.core import Structure

from src.data.cif import CrystalError
from src.data.readers import (
    SPLIT_NAMES,
    SPLITS,
    DataError,
    File,
    Numbers,
    Record,
    crystal_of,
    is_table,
)
from src.data.split_files import crystal_files, is_hidden
from src.data.structures.convert import to_structure
from src.data.structures.formats import read_file, reason_of

# What splitting needs to know of each crystal rides along as two more numbers. No column of a
# table has such a name by chance.
FILE = ".file"  # place of its file in `StructureReader.sources`
SPLIT = ".split by "  # and the name of a column: place in `SPLITS`


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


@dataclass(frozen=True, slots=True)
class StructureReader:
    """The crystals of a file, of a folder (at any depth) or of a zip archive, in sorted order.

    Files are opened one after the other. The rows of tables and databases and the frames of
    extended XYZ are read one after the other. Hidden files are passed over, and a `splits.csv` that
    says which crystals are in which split. A file, frame, row or CIF data block that cannot be used
    is a record with the reason: damaged ones, unknown formats, partial occupancies, atoms that are
    not periodic in three dimensions or of no element, POSCARs without elements.

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
        return crystal_files(self.source, self.pattern)

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
            for found in read_file(file, source, numbers.known, names, file == self.source):
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
                if not (name.endswith("/") or is_hidden(member)):
                    yield zipfile.Path(opened, name), source / member
    except (zipfile.BadZipFile, OSError) as error:
        yield Skipped(archive.name, reason_of(error))
