"""Read crystals from a file, from a folder at any depth, or from a zip archive, one at a time."""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from pymatgen.core import Structure

from src.data.crystal import CrystalError
from src.data.readers import (
    SPLIT_NAMES,
    SPLITS,
    DataError,
    File,
    PropertyParser,
    Record,
    crystal_of,
    is_table,
)
from src.data.split_files import crystal_files, is_hidden
from src.data.structures.convert import to_structure
from src.data.structures.formats import read_file, reason_of

# Names of two internal properties of each crystal, which are needed to split the data. They are
# unlikely to be names of columns.
FILE_INDEX = ".file"  # index of the crystal's file in `StructureReader.sources`
SPLIT_INDEX_PREFIX = ".split by "  # then the name of a column; index of the split in `SPLITS`


@dataclass(frozen=True, slots=True)
class NamedStructure:
    """A crystal, its ID, and the file that it is from.

    Attributes:
        id: see `StructureReader`.
        structure: the cell, elements and coordinates in the file. Everything else, such as
            oxidation states, is dropped.
        source: path of the file, relative to the folder or zip archive that was read.
    """

    id: str
    structure: Structure
    source: Path


class Skipped(NamedTuple):
    """A file, or a frame or row in one, that could not be read, and the reason."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class StructureReader:
    """Reads the crystals in a file, a folder (at any depth) or a zip archive, in sorted order.

    One file is open at a time. Tables, databases and extended XYZ are read as a stream. Hidden
    files are skipped, and so is a `splits.csv`, which lists the split of each crystal. A file,
    frame, row or CIF data block that cannot be used becomes a record with the reason. This applies
    to damaged files, unknown formats, partial occupancies, structures that are not periodic in
    three dimensions, atoms without an element, and POSCARs without element names.

    The ID of a crystal is the `material_id` or `id` in its file. If there is none, it is the path
    of the file without suffix, followed by `-INDEX` if the file contains several crystals.

    Args:
        source: the file, folder or zip archive.
        names: properties to keep: columns of a table, key-value pairs of a database, `info` of
            extended XYZ, `properties` of JSON, and energies if ASE finds them.
        pattern: shell-style pattern for the names of the files to read in a folder. An archive in
            the folder counts as one file. If `source` itself is an archive, the pattern applies to
            the files in it.
        split_column: name of a property whose value is the split of the crystal, as one of
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
        split_index = f"{SPLIT_INDEX_PREFIX}{self.split_column}"
        return (*self.names, FILE_INDEX, *([split_index] if self.split_column is not None else []))

    @property
    def sources(self) -> list[str]:
        """The files to read, including those in archives, with the paths in `Record.file`."""
        return [s.where if isinstance(s, Skipped) else s[1].as_posix() for s in self._iter_files()]

    def __iter__(self) -> Iterator[Record]:
        """Yield a record for each crystal, and for each file, frame or row that cannot be read.

        Raises:
            DataError: if the source is a single table and cannot be read to its end, if no crystal
                has one of the properties, or if the value of `split_column` is missing or unknown
                for a crystal.
        """
        parser = PropertyParser(self.source, self.names)
        any_read = False
        for file_index, item in enumerate(self._iter_files()):
            if isinstance(item, Skipped):
                yield Record(item.where, item.where, reason=item.reason, file=item.where)
                continue
            file, source = item
            names = (*self.names, self.split_column or "")
            for raw in read_file(file, source, parser.available, names, file == self.source):
                where, values = raw.where, raw.values
                if raw.reason:
                    yield Record(where, raw.id, reason=raw.reason, file=raw.file)
                    continue
                any_read = True
                properties = (*parser.parse(values, where), float(file_index))
                if self.split_column is not None:
                    properties += (_split_index(values, self.split_column, where),)
                yield Record(where, raw.id, raw.cif, properties, raw.crystal, file=raw.file)
        parser.warn_of_invalid()
        if any_read:
            parser.check_names()

    def _iter_files(self) -> Iterator[tuple[File, Path] | Skipped]:
        """Yield each file, including those in archives, with its path relative to the source."""
        if not self.source.is_dir():
            if self.source.suffix.lower() != ".zip":
                yield self.source, Path(self.source.name)
                return
            for item in _iter_archive(self.source, Path()):
                if isinstance(item, Skipped) or fnmatchcase(item[1].name, self.pattern):
                    yield item
            return
        for file in self.files:
            source = file.relative_to(self.source)
            is_archive = file.suffix.lower() == ".zip"
            yield from _iter_archive(file, source) if is_archive else [(file, source)]


def read_structures(path: str | Path) -> tuple[list[NamedStructure], list[Skipped]]:
    """Read all crystals in a file, folder or zip archive.

    Returns:
        The crystals, and what was skipped because it could not be read.

    Raises:
        DataError: if the path does not exist, or no crystal in it can be read.
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
            f"{path} contains no crystal that can be read{first}\nSupported formats: CIF, POSCAR, "
            "extended XYZ, pymatgen JSON, CSV and Parquet with a column 'cif', ASE databases, any "
            "other format that ASE reads, and zip archives of these."
        )
    return found, skipped


def iter_structures(path: str | Path) -> Iterator[NamedStructure | Skipped]:
    """Yield the crystals that `StructureReader` reads, in the cells of their files.

    Raises:
        DataError: if the path does not exist, or is a single table that cannot be read to its end.
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


def _split_index(values: Mapping[str, Any], column: str, where: str) -> float:
    split = SPLIT_NAMES.get(str(values.get(column, "")).strip().lower())
    if split is None:
        given = f"is {values[column]!r}" if column in values else "is missing"
        raise DataError(
            f"{where}: {column!r} {given}, but must name a split: {', '.join(SPLIT_NAMES)}"
        )
    return float(SPLITS.index(split))


def _iter_archive(archive: Path, source: Path) -> Iterator[tuple[File, Path] | Skipped]:
    try:
        with zipfile.ZipFile(archive) as opened:
            for name in sorted(opened.namelist()):
                member = Path(name.lstrip("/"))  # always below `source`, even if it is absolute
                if not (name.endswith("/") or is_hidden(member)):
                    yield zipfile.Path(opened, name), source / member
    except (zipfile.BadZipFile, OSError) as error:
        yield Skipped(archive.name, reason_of(error))
