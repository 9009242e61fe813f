"""The records that all readers yield, and the reader for tables (CSV, Parquet).

`src.data.structures` has the reader for all other formats, folders and archives.
"""

import ast
import io
import logging
import math
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from src.data.cif import read_cif
from src.data.crystal import Crystal, CrystalError
from src.data.exchange import (
    ID_KEYS,
    NESTED_KEYS,
    OPTIMADE_KEYS,
    OPTIONAL_OPTIMADE_KEYS,
    crystal_of_content,
)
from src.data.packing import UNPACKING_ERRORS, File, open_unpacked, unpacked_name, unpacked_path
from src.utils.errors import UserError

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")

# Names that a file or a column may use for a split, in lower case.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

# the first of these that a table has contains the IDs
ID_COLUMNS = ("material_id", "id", *(key for key in ID_KEYS if key not in ("material_id", "id")))

_CRYSTAL_COLUMNS = (*NESTED_KEYS, *OPTIMADE_KEYS, *OPTIONAL_OPTIMADE_KEYS)

_TRUTH = {"true": 1.0, "false": 0.0}
MISSING_VALUES = {"", "nan", "na", "n/a", "none", "null"}  # in lower case; read as NaN silently
# What pandas, pyarrow, gzip and zipfile raise for damaged files
_UNREADABLE = (*UNPACKING_ERRORS, ValueError, NotImplementedError, zipfile.BadZipFile)
_MAX_FLOAT = float(np.finfo(np.float32).max)
_MAX_NAMES_SHOWN = 30  # in an error message


@dataclass(frozen=True, slots=True)
class Record:
    """A crystal as read from a file, before it is checked.

    Attributes:
        where: the file, and the row or frame in it, for messages.
        id: the crystal's ID.
        cif: its CIF text, if it was read from a CIF or a table.
        properties: numbers in the order of the reader's `properties`, NaN where missing.
        crystal: the crystal, if it was read from any other format.
        reason: why it could not be read, if there is neither a CIF text nor a crystal.
        file: path of the file, relative to the source of the reader.
    """

    where: str
    id: str
    cif: str = ""
    properties: tuple[float, ...] = ()
    crystal: Crystal | None = None
    reason: str = ""
    file: str = ""


def crystal_of(record: Record) -> Crystal:
    """The crystal in a record, in the cell of the file.

    Raises:
        CrystalError: if it could not be read; the message says why.
    """
    if record.reason:
        raise CrystalError(record.reason)
    return read_cif(record.cif, niggli=False) if record.crystal is None else record.crystal


class DataError(UserError):
    """Data that cannot be used. The message names the file and says what to do."""


class Reader(Protocol):
    """A stream of records. Each iteration reads the files from the start."""

    @property
    def source(self) -> Path:
        """The file, folder or archive to read."""

    @property
    def files(self) -> Sequence[Path]:
        """All files that are read: `source` itself, or files inside it."""

    @property
    def properties(self) -> Sequence[str]:
        """The names of the values in `Record.properties`."""

    def __iter__(self) -> Iterator[Record]: ...


class PropertyParser:
    """Converts the properties of crystals to numbers, and counts the values that are not numbers.

    Args:
        source: where the properties come from, for messages.
        names: the requested properties.

    Attributes:
        available: names of all properties seen so far. The caller adds to it.
    """

    def __init__(self, source: Path, names: Sequence[str]) -> None:
        self.source = source
        self.names = tuple(names)
        self.available: set[str] = set()
        self._num_invalid: Counter[str] = Counter()
        self._first_invalid: dict[str, str] = {}

    def parse(self, values: Mapping[str, Any], where: str) -> tuple[float, ...]:
        """The requested properties of one crystal, NaN where missing or not a number.

        Args:
            values: all values given for the crystal, by name.
            where: the file, and the row or frame in it, for messages.
        """
        return tuple([self._parse_number(name, values.get(name), where) for name in self.names])

    def _parse_number(self, name: str, value: Any, where: str) -> float:
        if value is None or value is pd.NA or value is pd.NaT:
            return math.nan
        if isinstance(value, str):
            text = value.strip().lower()
            if text in MISSING_VALUES:
                return math.nan
            value = _TRUTH.get(text, value)
        try:
            number = math.nan if np.ndim(value) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.inf
        # NaN marks a missing value, but an array is invalid
        if abs(number) <= _MAX_FLOAT or (math.isnan(number) and not np.ndim(value)):
            return number
        self._num_invalid[name] += 1
        self._first_invalid.setdefault(name, f"{str(value)[:40]!r} in {where}")
        return math.nan

    def warn_of_invalid(self) -> None:
        """Log how many values were not numbers."""
        for name, first in self._first_invalid.items():
            log.warning(
                "%s: %d values of %r are not numbers and were replaced by NaN; the first is %s",
                self.source, self._num_invalid[name], name, first,
            )  # fmt: skip

    def check_names(self) -> None:
        """Check that each requested property is available for at least one crystal.

        Raises:
            DataError: if one is not; the message lists the available ones.
        """
        if absent := [name for name in self.names if name not in self.available]:
            names = sorted(self.available)
            shown = ", ".join(names[:_MAX_NAMES_SHOWN])
            if len(names) > _MAX_NAMES_SHOWN:
                shown += " ..."
            raise DataError(
                f"{self.source}: no crystal has {absent}; the available properties are: "
                f"{shown or 'none'}"
            )


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table.

    Attributes:
        index: number of the row, from 0.
        id: the value of `material_id` or `id`; None if the table has neither.
        cif: the CIF text; empty if the table has crystals in another form.
        values: the values of the requested columns, by name.
        content: a dictionary or its JSON text, see `src.data.exchange`; None if there is a `cif`.
    """

    index: int
    id: str | None
    cif: str
    values: Mapping[str, Any]
    content: Any = None


@dataclass(frozen=True, slots=True)
class CsvReader:
    """Reads a table with a column `cif` and optional columns `material_id` or `id`, and properties.

    Instead of `cif`, the table can have a column `structure` or `atoms` with dictionaries or JSON,
    or the columns of OPTIMADE, as LeMaterial's tables do.

    Args:
        path: a `.csv` or `.parquet` file, which may be packed.
        properties: numeric columns to keep. A column that the file lacks is all NaN.
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
        """Yield the rows, with one chunk of the file in memory at a time.

        Raises:
            DataError: if the file cannot be read as a table or has no column with crystals.
        """
        parser = PropertyParser(self.path, self.properties)
        absent = set(self.properties) - set(columns_of(self.path))
        for name in (name for name in self.properties if name in absent):
            log.warning("%s has no column %r: it is NaN for all crystals", self.path, name)
        for row in iter_rows(self.path, self.properties):
            where, id_ = f"{self.path.name} row {row.index}", row.id
            id_ = str(row.index) if id_ is None else id_
            properties = parser.parse(row.values, where)
            crystal, reason = None, ""
            if row.content is not None:
                try:
                    crystal = crystal_of_content(row.content)
                except CrystalError as error:
                    reason = str(error)
            yield Record(where, id_, row.cif, properties, crystal, reason, self.path.name)
        parser.warn_of_invalid()


def is_table(name: str) -> bool:
    """Whether a file with this name is a table: `.csv` or `.parquet`, packed or not."""
    return unpacked_name(name).lower().endswith((".csv", ".parquet"))


def columns_of(file: File) -> list[str]:
    """The names of a table's columns.

    Raises:
        DataError: if the file cannot be read as a table.
    """
    with _as_data_error(file):
        if _is_parquet(file):
            from pyarrow import parquet

            with unpacked_path(file) as path, parquet.ParquetFile(path) as table:
                return list(table.schema_arrow.names)
        with open_unpacked(file) as content:
            return pd.read_csv(
                io.BufferedReader(_NulCheckingReader(content)), nrows=0
            ).columns.tolist()


def _is_parquet(file: File) -> bool:
    return unpacked_name(file.name).lower().endswith(".parquet")


def iter_rows(file: File, names: Sequence[str] = ()) -> Iterator[Row]:
    """Yield the rows of a table, with one chunk of the file in memory at a time.

    Args:
        file: a `.csv` or `.parquet` file, which may be packed or in an archive.
        names: columns to include in `Row.values`. Columns that do not exist are ignored.

    Raises:
        DataError: if the file cannot be read as a table, has no column with crystals, or has
            several columns of the same name among those it needs.
    """
    index = 0
    for chunk in _chunks(file, names):
        contents = None if "cif" in chunk else _contents(chunk)
        if contents is None:
            if "cif" not in chunk:
                raise _no_crystals(file)
            contents = [None] * len(chunk)
            cifs = list(map(_cif_text, chunk["cif"].tolist()))
        else:
            cifs = [""] * len(chunk)
        rows = zip(_ids(chunk), cifs, _values(chunk, names), contents, strict=True)
        for id_, cif, values, content in rows:
            yield Row(index, id_, cif, values, content)
            index += 1


def _cif_text(value: Any) -> str:
    """CIF text of a cell, which may be bytes, or the text that Python prints for bytes."""
    if isinstance(value, str):
        if value[:2] not in ("b'", 'b"'):
            return value
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", errors="replace")
    return "" if pd.isna(value) else str(value)


def _contents(chunk: pd.DataFrame) -> list[Any] | None:
    """The crystals of rows as dictionaries or JSON; None if the table has no such columns."""
    for name in NESTED_KEYS:
        if name in chunk and any(map(_is_dictionary, chunk[name].dropna().head(100).tolist())):
            return [{} if value is None else value for value in chunk[name].tolist()]
    if not all(name in chunk for name in OPTIMADE_KEYS):
        return None
    names = [name for name in (*OPTIMADE_KEYS, *OPTIONAL_OPTIMADE_KEYS) if name in chunk]
    columns = (chunk[name].tolist() for name in names)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _is_dictionary(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, str) and value.lstrip()[:1] == "{")


def _no_crystals(file: File) -> DataError:
    columns = columns_of(file)
    if _is_headerless(columns):
        return DataError(
            f"{file} has no header, but begins with {','.join(columns)[:80]!r}: add a first line "
            "with the names of the columns. If it lists properties of crystals in other files, as "
            "id_prop.csv does, name the columns id,PROPERTY and set data.property_file"
        )
    return DataError(
        f"{file} has no column 'cif'; its columns are {columns}: rename the one with the CIF text "
        "to 'cif', or one with dictionaries or JSON of pymatgen, OPTIMADE, JARVIS or ASE to "
        "'structure'"
    )


def _is_headerless(columns: Sequence[str]) -> bool:
    """Whether names of columns are values: at least one is a number."""
    return len(columns) > 1 and any(_is_number(name) for name in columns[1:])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.strip().lower() not in MISSING_VALUES


def read_properties(path: Path, names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Read a table of properties without crystals.

    Args:
        path: a `.csv`, `.csv.gz` or `.parquet` file with a column `material_id` or `id`.
        names: the columns to read.

    Returns:
        By ID, the values of the columns in the order of `names`.

    Raises:
        DataError: if the table cannot be read, lacks a column, or has duplicate columns or IDs.
    """
    parser = PropertyParser(path, names)
    found: dict[str, tuple[float, ...]] = {}
    columns = columns_of(path)
    if _is_headerless(columns) and not set(names) & set(columns):
        raise DataError(
            f"{path} has no header, but begins with {','.join(columns)[:80]!r}: add a first line "
            f"with the names of the columns, such as id,{','.join(names)}"
        )
    parser.available.update(columns)
    parser.check_names()
    for chunk in _chunks(path, names):
        for id_, values in zip(_ids(chunk), _values(chunk, names), strict=True):
            if id_ is None:
                raise DataError(
                    f"{path} has no column material_id or id: add one with the IDs of the crystals"
                )
            if id_ in found:
                raise DataError(f"{path} has {id_!r} twice: keep one row per crystal")
            found[id_] = parser.parse(values, f"row {len(found)}")
    parser.warn_of_invalid()
    return found


def _chunks(file: File, names: Sequence[str]) -> Iterator[pd.DataFrame]:
    with _as_data_error(file):
        header = _header(file)
        for name in dict.fromkeys((*ID_COLUMNS, "cif", *_CRYSTAL_COLUMNS, *names)):
            if header.count(name) > 1:  # pandas would silently use the first
                raise DataError(f"{file} has {header.count(name)} columns {name!r}: keep one")
        chunks = _parquet_chunks if _is_parquet(file) else _csv_chunks
        yield from chunks(file, names)


def _header(file: File) -> list[str]:
    """The column names as written in the file; `columns_of` has pandas rename duplicates."""
    if _is_parquet(file):
        return columns_of(file)
    with open_unpacked(file) as content:
        raw = io.BufferedReader(_NulCheckingReader(content))
        first = pd.read_csv(raw, header=None, nrows=1, dtype=str, keep_default_na=False)
    return first.iloc[0].tolist()


def _ids(chunk: pd.DataFrame) -> list[str | None]:
    key = next((key for key in ID_COLUMNS if key in chunk), None)
    if key is None:
        return [None] * len(chunk)
    return [_id_text(value) for value in chunk[key].tolist()]


def _id_text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, float) and value.is_integer():  # a whole number beside an empty cell
        return str(int(value))
    return "" if pd.isna(value) else str(value)


def _values(chunk: pd.DataFrame, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    present = [name for name in dict.fromkeys(names) if name in chunk]
    if not present:
        return iter([{} for _ in range(len(chunk))])
    columns = (chunk[name].tolist() for name in present)
    return (dict(zip(present, row, strict=True)) for row in zip(*columns, strict=True))


@contextmanager
def _as_data_error(file: File) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except _UNREADABLE as error:
        kind = "Parquet" if _is_parquet(file) else "CSV"
        raise DataError(f"{file} is not a readable {kind} file: {error}") from error


def _csv_chunks(file: File, names: Sequence[str]) -> Iterator[pd.DataFrame]:
    with (
        open_unpacked(file) as raw,
        pd.read_csv(
            io.BufferedReader(_NulCheckingReader(raw)),
            chunksize=10_000,
            dtype=dict.fromkeys((*ID_COLUMNS, "cif", *_CRYSTAL_COLUMNS), str),
            low_memory=False,
            keep_default_na=False,  # "NA" can be an ID
        ) as chunks,
    ):
        for chunk in chunks:
            if not isinstance(chunk.index, pd.RangeIndex):  # pandas used a column as the index
                raise DataError(f"{file} has a row with more values than there are column names")
            yield chunk


def _parquet_chunks(file: File, names: Sequence[str]) -> Iterator[pd.DataFrame]:
    from pyarrow import parquet  # slow to import, and rarely needed

    with unpacked_path(file) as path, parquet.ParquetFile(path) as table:
        present = table.schema_arrow.names
        crystals = ["cif"] if "cif" in present else _CRYSTAL_COLUMNS
        wanted = [n for n in dict.fromkeys([*ID_COLUMNS, *crystals, *names]) if n in present]
        for batch in table.iter_batches(batch_size=10_000, columns=wanted):
            # pandas would make the column that was its index, such as the IDs, the index again
            yield batch.to_pandas(ignore_metadata=True)


class _NulCheckingReader(io.RawIOBase):
    """Raises an error at a NUL byte, where pandas would silently truncate the field."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._file.read(len(buffer))
        if b"\0" in content:
            raise OSError("it contains a NUL byte")
        buffer[: len(content)] = content
        return len(content)
