"""What lies on disk, as a stream of records: a CSV in the CDVAE layout, or a folder of CIFs."""

import gzip
import io
import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.data.known_sets import KNOWN_SETS

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Record:
    """One crystal as it was found: where (for messages), its id, its CIF text, its properties."""

    where: str
    id: str
    cif: str
    properties: tuple[float, ...] = ()


class DataError(ValueError):
    """Input data that cannot be used; the message names the file and what to do."""


@dataclass(frozen=True, slots=True)
class CsvReader:
    """A table with the columns `material_id` (optional), `cif`, and properties.

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
            DataError: if the file cannot be read as CSV or has no column `cif`.
        """
        row = 0
        opened = gzip.open if self.path.suffix == ".gz" else open
        try:
            with (
                opened(self.path, "rb") as file,
                pd.read_csv(
                    io.BufferedReader(_WithoutNul(file)),
                    chunksize=10_000,
                    dtype={"material_id": str, "cif": str},
                    low_memory=False,
                    keep_default_na=False,  # "NA" is a name, too
                ) as chunks,
            ):
                for chunk in chunks:
                    if row == 0:
                        self._check_columns(chunk)
                    values = np.full((len(chunk), len(self.properties)), np.nan)
                    for i, name in enumerate(self.properties):
                        if name in chunk:
                            values[:, i] = pd.to_numeric(chunk[name], errors="coerce")
                    cifs = chunk["cif"].fillna("").tolist()
                    ids = (
                        chunk["material_id"].fillna("").tolist()
                        if "material_id" in chunk
                        else [str(row + i) for i in range(len(chunk))]
                    )
                    for id_, cif, value in zip(ids, cifs, values.tolist(), strict=True):
                        yield Record(f"{self.path.name} row {row}", id_, cif, tuple(value))
                        row += 1
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError,
                EOFError, zlib.error) as error:  # fmt: skip
            raise DataError(f"{self.path} is not a readable CSV file: {error}") from error

    def _check_columns(self, chunk: pd.DataFrame) -> None:
        if not isinstance(chunk.index, pd.RangeIndex):  # pandas has shifted the names
            raise DataError(f"{self.path} has more values in a row than columns in its first line")
        if "cif" not in chunk:
            header = pd.read_csv(self.path, nrows=0).columns.tolist()
            raise DataError(f"{self.path} has no column 'cif'; its columns are {header}")
        for name in self.properties:
            if name not in chunk:
                log.warning("%s has no column %r: NaN for all its crystals", self.path, name)


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


@dataclass(frozen=True, slots=True)
class CifReader:
    """Some `.cif` files below a folder; a crystal's id is its path there, without the suffix."""

    source: Path
    files: Sequence[Path]

    def __iter__(self) -> Iterator[Record]:
        for path in self.files:
            name = path.relative_to(self.source)
            text = path.read_text(encoding="utf-8-sig", errors="replace")
            yield Record(str(name), str(name.with_suffix("")), text)


Reader = CsvReader | CifReader


def find_splits(
    data_dir: Path,
    properties: Sequence[str] = (),
    split_ratio: Sequence[float] = (0.8, 0.1, 0.1),
    split_seed: int = 0,
) -> dict[str, Reader]:
    """Readers of the splits that a folder holds.

    A folder with `train.csv` (and `val.csv`, `test.csv`; `.csv.gz` too) is taken as it is split
    there. Any other folder is searched for `*.cif` at any depth, which are shuffled by
    `split_seed` and dealt out by `split_ratio`.

    Raises:
        DataError: if there is no such folder, or neither kind of file in it.
    """
    fetch = (
        f" `python scripts/download_data.py {data_dir.name} --data-dir {data_dir.parent}` fetches "
        "this known set; so does data.download=true."
        if data_dir.name in KNOWN_SETS
        else ""
    )
    if not data_dir.is_dir():
        raise DataError(
            f"There is no folder {data_dir}. Point data.data_dir to a folder with train.csv, "
            "val.csv and test.csv (or .csv.gz; columns material_id, cif), or with .cif files; "
            f"experiment=prototypes/vae_dng trains on the data that come with the project.{fetch}"
        )
    tables = {
        split: path
        for split in SPLITS
        for path in (data_dir / f"{split}.csv.gz", data_dir / f"{split}.csv")
        if path.is_file()
    }
    if tables:
        return {split: CsvReader(path, tuple(properties)) for split, path in tables.items()}
    files = sorted(path for path in data_dir.rglob("*.cif") if path.is_file())
    if not files:
        raise DataError(
            f"{data_dir} holds neither train.csv (or .csv.gz) nor any .cif file: "
            f"point data.data_dir to a folder that does.{fetch}"
        )
    if properties:
        raise DataError(f"{data_dir} is a folder of .cif files, which carry no {list(properties)}")
    if len(split_ratio) != 3 or min(split_ratio) < 0 or sum(split_ratio) <= 0:
        raise DataError(f"split_ratio is train, val, test, none negative; not {split_ratio}")
    order = np.random.default_rng(split_seed).permutation(len(files))
    shares = np.cumsum(split_ratio)[:2] / np.sum(split_ratio)
    parts = np.split(order, np.round(shares * len(files)).astype(int))
    return {
        split: CifReader(data_dir, tuple(files[i] for i in sorted(part)))
        for split, part in zip(SPLITS, parts, strict=True)
        if len(part)
    }
