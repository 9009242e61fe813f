"""What lies on disk, as a stream of records; tables (CSV, Parquet) are read here.

`src.data.structures` has the reader of all other formats, of folders and of archives.
"""

import gzip
import io
import logging
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from src.data.cif import Crystal, CrystalError, read_cif
from src.utils.errors import UserError

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")

# What a split may be called by a file or in a column that says it, in small letters.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

ID_COLUMNS = ("material_id", "id")  # of a table, the first that is there

File = Path | zipfile.Path
MISSING = {"", "nan", "na", "n/a", "none", "null"}  # in small letters: no number, and no mistake
# what pandas, pyarrow, gzip and zipfile raise of damaged files
_UNREADABLE = (OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error)
_MAX_FLOAT = float(np.finfo(np.float32).max)
_MAX_NAMED = 30  # names in a message


@dataclass(frozen=True, slots=True)
class Record:
    """One crystal as it was found.

    Attributes:
        where: file, and row or frame in it, for messages.
        id: its name.
        cif: its CIF text, where it has one.
        properties: numbers in the order of the reader's `properties`, NaN where missing.
        crystal: the crystal, where its format is another one.
        reason: why there is neither: it could not be read.
        file: its file, relative to what is read.
    """

    where: str
    id: str
    cif: str = ""
    properties: tuple[float, ...] = ()
    crystal: Crystal | None = None
    reason: str = ""
    file: str = ""


def crystal_of(record: Record) -> Crystal:
    """The crystal of a record, its cell as given.

    Raises:
        CrystalError: if there is none; the message says why.
    """
    if record.reason:
        raise CrystalError(record.reason)
    return read_cif(record.cif, niggli=False) if record.crystal is None else record.crystal


class DataError(UserError):
    """Input data that cannot be used; the message names the file and what to do."""


class Reader(Protocol):
    """A stream of records: an iterable that reads its files anew each time."""

    @property
    def source(self) -> Path:
        """What one said to read."""

    @property
    def files(self) -> Sequence[Path]:
        """All files whose bytes decide the records, in or at `source`."""

    @property
    def properties(self) -> Sequence[str]:
        """The names of the records' `properties`."""

    def __iter__(self) -> Iterator[Record]: ...


class Numbers:
    """Properties of crystals as numbers; remembers which names there are, and what was no number.

    Args:
        source: what is read, for messages.
        names: the properties that are asked for.
    """

    def __init__(self, source: Path, names: Sequence[str]) -> None:
        self.source = source
        self.names = tuple(names)
        self.known: set[str] = set()
        self._num_bad: Counter[str] = Counter()
        self._first_bad: dict[str, str] = {}

    def __call__(self, values: Mapping[str, Any], where: str) -> tuple[float, ...]:
        """The numbers of one crystal, NaN for those that are missing or none.

        Args:
            values: what it carries, by name.
            where: it was found.
        """
        return tuple([self._number(name, values.get(name), where) for name in self.names])

    def _number(self, name: str, value: Any, where: str) -> float:
        if value is None or (isinstance(value, str) and value.strip().lower() in MISSING):
            return math.nan
        try:
            number = math.nan if np.ndim(value) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.inf
        # NaN is how a table says that it has none, but an array is no number
        if abs(number) <= _MAX_FLOAT or (math.isnan(number) and not np.ndim(value)):
            return number
        self._num_bad[name] += 1
        self._first_bad.setdefault(name, f"{str(value)[:40]!r} in {where}")
        return math.nan

    def warn(self) -> None:
        """Say how many values were no numbers."""
        for name, first in self._first_bad.items():
            log.warning(
                "%s: %d values of %r are no numbers, and NaN now; the first is %s",
                self.source, self._num_bad[name], name, first,
            )  # fmt: skip

    def check_known(self) -> None:
        """Refuse names that no crystal has.

        Raises:
            DataError: for such a name; it lists those that there are.
        """
        if absent := [name for name in self.names if name not in self.known]:
            there = sorted(self.known)
            named = ", ".join(there[:_MAX_NAMED]) + (" ..." if len(there) > _MAX_NAMED else "")
            raise DataError(
                f"{self.source}: no crystal has {absent}; the properties there are: "
                f"{named or 'none'}"
            )


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table.

    Attributes:
        index: from 0.
        id: of `material_id` or `id`; None where the table has neither.
        cif: the CIF text.
        values: the columns that were asked for, by name.
    """

    index: int
    id: str | None
    cif: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CsvReader:
    """A table with the columns `material_id` or `id` (optional), `cif`, and properties.

    Args:
        path: `.csv`, plain or `.gz`.
        properties: numeric columns that ride along; one that this file lacks is all NaN.
    """

    path: Path
    properties: Sequence[str] = ()

    @property
    def source(self) -> Path:
        return self.path

    @property
    def files(self) -> list[Path]:
        return [self.path]

    def __iter__(self) -> Iterator[Record]:
        """Yield the rows, a chunk of the file in memory at a time.

        Raises:
            DataError: if the file cannot be read as a table or has no column `cif`.
        """
        numbers = Numbers(self.path, self.properties)
        lacking = set(self.properties) - set(columns_of(self.path))
        for name in (name for name in self.properties if name in lacking):
            log.warning("%s has no column %r: NaN for all its crystals", self.path, name)
        for row in iter_rows(self.path, self.properties):
            where, id_ = f"{self.path.name} row {row.index}", row.id
            id_ = str(row.index) if id_ is None else id_
            yield Record(where, id_, row.cif, numbers(row.values, where), file=self.path.name)
        numbers.warn()


def is_table(name: str) -> bool:
    """Whether a file of this name is read by rows: `.csv`, `.csv.gz` or `.parquet`."""
    return name.lower().endswith((".csv", ".csv.gz", ".parquet"))


def columns_of(file: File) -> list[str]:
    """The names of a table's columns.

    Raises:
        DataError: if the file cannot be read as a table.
    """
    with _as_data_error(file):
        if file.name.lower().endswith(".parquet"):
            from pyarrow import parquet

            with file.open("rb") as raw, parquet.ParquetFile(raw) as table:
                return list(table.schema_arrow.names)
        with _open(file) as content:
            return pd.read_csv(io.BufferedReader(_WithoutNul(content)), nrows=0).columns.tolist()


def iter_rows(file: File, names: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of a table, a chunk of the file in memory at a time.

    Args:
        file: `.csv`, `.csv.gz` or `.parquet`, maybe in an archive.
        names: the columns that a row's `values` are to have, where there are such.

    Raises:
        DataError: if the file cannot be read as a table, has no column `cif`, or has a column twice
            that is asked for.
    """
    index = 0
    for chunk in _chunks(file, names):
        if "cif" not in chunk:
            raise DataError(
                f"{file} has no column 'cif'; its columns are {columns_of(file)}: rename the one "
                "that holds the text of CIFs"
            )
        cifs = ["" if pd.isna(cif) else str(cif) for cif in chunk["cif"].tolist()]
        for id_, cif, values in zip(_ids(chunk), cifs, _values(chunk, names), strict=True):
            yield Row(index, id_, cif, values)
            index += 1


def read_properties(path: Path, names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """The numbers of a table that has no crystals, by the ids of those they belong to.

    Args:
        path: `.csv`, `.csv.gz` or `.parquet` with the column `material_id` or `id`.
        names: of its columns.

    Raises:
        DataError: if it cannot be read, lacks a column, or has one or an id twice.
    """
    numbers = Numbers(path, names)
    found: dict[str, tuple[float, ...]] = {}
    numbers.known.update(columns_of(path))
    numbers.check_known()
    for chunk in _chunks(path, names):
        for id_, values in zip(_ids(chunk), _values(chunk, names), strict=True):
            if id_ is None:
                raise DataError(f"{path} has no column material_id or id that says whose they are")
            if id_ in found:
                raise DataError(f"{path} has {id_!r} twice: keep one row for each crystal")
            found[id_] = numbers(values, f"row {len(found)}")
    numbers.warn()
    return found


def _chunks(file: File, names: Sequence[str]) -> Iterator[pd.DataFrame]:
    with _as_data_error(file):
        header = _header(file)
        for name in dict.fromkeys((*ID_COLUMNS, "cif", *names)):
            if header.count(name) > 1:  # pandas would take the first
                raise DataError(f"{file} has {header.count(name)} columns {name!r}: keep one")
        chunks = _parquet_chunks if file.name.lower().endswith(".parquet") else _csv_chunks
        yield from chunks(file, names)


def _header(file: File) -> list[str]:
    """The names of a table's columns as they stand there."""
    if file.name.lower().endswith(".parquet"):
        return columns_of(file)
    with _open(file) as content:
        raw = io.BufferedReader(_WithoutNul(content))
        first = pd.read_csv(raw, header=None, nrows=1, dtype=str, keep_default_na=False)
    return first.iloc[0].tolist()


def _ids(chunk: pd.DataFrame) -> list[str | None]:
    key = next((key for key in ID_COLUMNS if key in chunk), None)
    if key is None:
        return [None] * len(chunk)
    return ["" if pd.isna(value) else str(value) for value in chunk[key].tolist()]


def _values(chunk: pd.DataFrame, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    there = [name for name in dict.fromkeys(names) if name in chunk]
    if not there:
        return iter([{} for _ in range(len(chunk))])
    columns = (chunk[name].tolist() for name in there)
    return (dict(zip(there, row, strict=True)) for row in zip(*columns, strict=True))


@contextmanager
def _as_data_error(file: File) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except _UNREADABLE as error:
        kind = "Parquet" if file.name.lower().endswith(".parquet") else "CSV"
        raise DataError(f"{file} is not a readable {kind} file: {error}") from error


@contextmanager
def _open(file: File) -> Iterator[Any]:
    with file.open("rb") as raw:
        if file.name.lower().endswith(".gz"):
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield unpacked
        else:
            yield raw


def _csv_chunks(file: File, names: Sequence[str]) -> Iterator[pd.DataFrame]:
    with (
        _open(file) as raw,
        pd.read_csv(
            io.BufferedReader(_WithoutNul(raw)),
            chunksize=10_000,
            dtype=dict.fromkeys((*ID_COLUMNS, "cif"), str),
            low_memory=False,
            keep_default_na=False,  # "NA" is a name, too
        ) as chunks,
    ):
        for chunk in chunks:
            if not isinstance(chunk.index, pd.RangeIndex):  # pandas has shifted the names
                raise DataError(f"{file} has more values in a row than columns in its first line")
            yield chunk


def _parquet_chunks(file: File, names: Sequence[str]) -> Iterator[pd.DataFrame]:
    from pyarrow import parquet  # takes a while, and most data need none

    with file.open("rb") as raw, parquet.ParquetFile(raw) as table:
        there = table.schema_arrow.names
        wanted = [n for n in dict.fromkeys([*ID_COLUMNS, "cif", *names]) if n in there]
        for batch in table.iter_batches(batch_size=10_000, columns=wanted):
            yield batch.to_pandas()


class _WithoutNul(io.RawIOBase):
    """Passes bytes on until there is a zero among them: there pandas would cut off the field."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._file.read(len(buffer))
        if b"\0" in content:
            raise OSError("there is a zero byte in it")
        buffer[: len(content)] = content
        return len(content)
