"""Find the train, val and test splits of the data, or split it."""

import csv
import logging
import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pymatgen.core import Composition
from rich.progress import track

from src.data.cells import symmetry_of
from src.data.crystal import Crystal
from src.data.dataset import CrystalDataset
from src.data.known_sets import KNOWN_SETS
from src.data.readers import (
    ID_COLUMNS,
    SPLITS,
    CsvReader,
    DataError,
    Reader,
    columns_of,
    is_table,
)
from src.data.split_files import SPLITS_CSV, find_splits, find_splits_csv, folders_with_splits
from src.data.structures import FILE_INDEX, SPLIT_INDEX_PREFIX, StructureReader, split_batch
from src.utils.formulas import reduced_formula
from src.utils.output import new_file

log = logging.getLogger(__name__)

SPLIT_BY = ("random", "column", "composition", "prototype", "file")
PROTOTYPE_SYMPREC = 0.1  # Å, the tolerance of the Materials Project for space groups
COLUMNS = ("id", "file", "split", "group")  # of splits.csv

_MAX_CRYSTALS_SHOWN = 5  # in an error message


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """How to split crystals that do not come with splits.

    Args:
        by: `random`: each crystal separately. `composition`: crystals with the same reduced formula
            stay together. `prototype`: crystals with the same prototype (see `prototype`) stay
            together. `column`: by the value of a property. `file`: as in an existing `splits.csv`.
        ratio: relative sizes of train, val and test, for `random`, `composition` and `prototype`.
        seed: seed of the shuffling, for the same three.
        column: name of the property, for `column`.
        file: path of the `splits.csv`, for `file`.
    """

    by: str = "random"
    ratio: Sequence[float] = (0.8, 0.1, 0.1)
    seed: int = 0
    column: str | None = None
    file: Path | None = None

    def check(self) -> None:
        """Check that the options are valid and consistent.

        Raises:
            DataError: if an option is invalid, or `column` or `file` does not go with `by`.
        """
        if self.by not in SPLIT_BY:
            raise DataError(f"data.split_by must be one of {', '.join(SPLIT_BY)}, not {self.by!r}")
        if len(self.ratio) != 3 or not min(self.ratio) >= 0 or not 0 < sum(self.ratio) < math.inf:
            raise DataError(
                "data.split_ratio must be three numbers for train, val and test, none negative and "
                f"not all zero; it is {self.ratio}"
            )
        for name in ("column", "file"):
            if (self.by == name) != (getattr(self, name) is not None):
                raise DataError(
                    f"data.split_by={name} and data.split_{name}=... must be given together"
                )


def find_readers(
    data_dir: Path, properties: Sequence[str] = (), pattern: str = "*.cif",
    options: SplitOptions | None = None,
) -> StructureReader | dict[str, Reader]:  # fmt: skip
    """Find what to read: one reader per split if the data come with splits, else one for all.

    If a folder contains splits (`train.csv`, `val.csv`, ..., or other formats or folders: see
    `src.data.split_files.find_splits`), each split has its own reader. Anything else is read by a
    single `StructureReader` and has to be split later, by `split_crystals`.

    Args:
        data_dir: a folder or a file.
        properties: names of the properties to keep.
        pattern: shell-style pattern for the names of the files to read in a folder without splits.
        options: how crystals without splits will be split; None for the defaults.

    Raises:
        DataError: if there is nothing to read, if several files could be the same split, if no
            split has one of the properties, or if the options are invalid or cannot be used with
            these data.
    """
    options = options or SplitOptions()
    options.check()
    download_hint = (
        f" `python scripts/download_data.py {data_dir.name} --data-dir {data_dir.parent}` "
        "downloads this known data set, and so does data.download=true."
        if data_dir.name in KNOWN_SETS
        else ""
    )
    if not data_dir.exists():
        raise DataError(
            f"There is no folder {data_dir}. Point data.data_dir to a folder with train.csv, "
            "val.csv and test.csv (or .csv.gz; columns material_id, cif), or with .cif files; "
            "experiment=prototypes/vae_dng trains on the data included in the project."
            f"{download_hint}"
        )
    names = tuple(properties)
    split_is_requested = options.by != "random"
    found = find_splits(data_dir, pattern, with_folders=not split_is_requested)
    if readers := _split_readers(data_dir, found, names, pattern):
        if split_is_requested:
            raise DataError(
                f"{data_dir} already contains the splits {', '.join(readers)}: remove "
                "data.split_by, or point data.data_dir to one of the files. With a checkpoint, "
                "specify the data again: data=default data.data_dir=..."
            )
        return readers
    reader = StructureReader(data_dir, names, pattern, options.column)
    if not reader.files:
        raise DataError(
            f"{data_dir} contains neither train.csv (or .csv.gz) nor any file {pattern}: point "
            "data.data_dir to a folder that does, or use data=structures for other formats."
            f"{download_hint}"
        )
    if resolve_options(data_dir, options).by == "random":
        for folder in folders_with_splits(reader.sources):
            log.warning(
                "%s: %s contains splits, which are ignored: all crystals are pooled and split at "
                "random. To use these splits, point data.data_dir to the folder that contains "
                "them (if they are in an archive, unpack it first)",
                data_dir, "it" if folder == "." else folder,
            )  # fmt: skip
    return reader


def resolve_options(data_dir: Path, options: SplitOptions) -> SplitOptions:
    """The options to use: a `splits.csv` in the folder takes precedence over a random split.

    Raises:
        DataError: if there is a `splits.csv` that cannot be read.
    """
    if options.by != "random" or (path := find_splits_csv(data_dir)) is None:
        return options
    return replace(options, by="file", file=path)


def _split_readers(
    folder: Path, found: Mapping[str, Path], names: tuple[str, ...], pattern: str
) -> dict[str, Reader]:
    readers: dict[str, Reader] = {}
    columns: set[str] = set()
    for split, path in found.items():
        if path.is_dir():
            readers[split] = StructureReader(path, names, pattern)
        elif is_table(path.name):
            readers[split] = CsvReader(path, names)
        else:
            readers[split] = StructureReader(path, names)
        is_csv = isinstance(readers[split], CsvReader)  # StructureReader checks while it reads
        columns.update(columns_of(path) if is_csv and names else names)
    if absent := sorted(set(names) - columns) if readers else []:
        available = sorted(columns - {"cif", *ID_COLUMNS})
        raise DataError(
            f"{folder}: no split has a column {absent}; the available columns are: "
            f"{', '.join(available) or 'none'}"
        )
    return readers


def split_crystals(
    dataset: CrystalDataset, reader: StructureReader, options: SplitOptions
) -> dict[str, CrystalDataset]:
    """Split crystals that do not come with splits.

    The splits are written to a `splits.csv` in a folder below the cache of `dataset`, whose path is
    in the log, and read from there the next time. If the folder of the crystals contains a
    `splits.csv`, it takes precedence over a random split.

    Args:
        dataset: all crystals of `reader`, in its order.

    Returns:
        The crystals of each split. Empty splits are omitted.

    Raises:
        DataError: if the `splits.csv` cannot be read, or does not list exactly these crystals.
    """
    if not len(dataset):
        return {"train": drop_internal_properties(dataset)}
    files = reader.sources
    sources = [files[int(index)] for index in dataset.y[FILE_INDEX].tolist()]
    keys = list(zip(dataset.ids, sources, strict=True))
    given, options = options, resolve_options(reader.source, options)
    if given is not options:
        log.info(
            "Using the splits in %s. To split the data in another way, move this file elsewhere, "
            "or set, for example, data.split_by=composition",
            options.file,
        )
    if options.by == "file":
        assert options.file is not None  # by SplitOptions.check
        split_indices = read_splits(options.file, keys)
    else:
        split_indices = _load_or_create_splits(dataset, keys, options)
    splits = {}
    for index, split in enumerate(SPLITS):
        members = torch.from_numpy(np.flatnonzero(split_indices == index))
        if len(members):
            splits[split] = drop_internal_properties(dataset.subset(members))
    return splits


def drop_internal_properties(dataset: CrystalDataset) -> CrystalDataset:
    """Delete the properties that were only needed for splitting. Modifies and returns `dataset`."""
    for name in list(dataset.y):
        if name == FILE_INDEX or name.startswith(SPLIT_INDEX_PREFIX):
            del dataset.y[name]
    return dataset


def add_properties(
    dataset: CrystalDataset,
    table: Mapping[str, Sequence[float]],
    names: Sequence[str],
    path: Path,
    split: str | None = None,
) -> None:
    """Add properties from a table to a data set, NaN for crystals that the table does not list.

    Args:
        table: by ID, the values in the order of `names`.
        path: path of the table, for messages.
        split: the name of the data set, for messages.

    Raises:
        DataError: if the table lists none of the crystals.
    """
    missing = [math.nan] * len(names)
    rows = torch.tensor([table.get(id_, missing) for id_ in dataset.ids]).reshape(-1, len(names))
    if num_missing := sum(id_ not in table for id_ in dataset.ids):
        example = next(id_ for id_ in dataset.ids if id_ not in table)
        message = (
            f"{path} has no row for {num_missing:,} of {len(dataset):,} crystals"
            f"{f' of the split {split}' if split else ''}, the first being {example}"
        )
        if num_missing == len(dataset):
            raise DataError(f"{message}: its IDs must be those of the crystals, without .cif")
        log.warning("%s", message)
    dataset.y.update({name: rows[:, i].clone() for i, name in enumerate(names)})


def splits_file(dataset: CrystalDataset, options: SplitOptions) -> Path:
    """The `splits.csv` for the splits that `split_crystals` makes of `dataset`."""
    if options.file is not None:
        return options.file
    assert dataset.path is not None
    ratio = "_".join(f"{share:g}" for share in options.ratio)
    name = options.by if options.by == "column" else f"{options.by}_{ratio}_seed_{options.seed}"
    return dataset.path.parent / name / SPLITS_CSV


def _load_or_create_splits(
    dataset: CrystalDataset, keys: Sequence[tuple[str, str]], options: SplitOptions
) -> np.ndarray:
    path = splits_file(dataset, options)
    if path.is_file():
        try:
            split_indices = read_splits(path, keys)
        except DataError as error:
            log.warning("Splitting the data again: %s", error)
        else:
            log.info("Using the splits in %s", path)
            return split_indices
    groups = [""] * len(dataset)
    if options.by == "column":
        column = dataset.y[f"{SPLIT_INDEX_PREFIX}{options.column}"]
        split_indices = column.numpy().astype(np.int64)
    elif options.by == "random":
        split_indices = assign_splits(np.arange(len(dataset)), options.ratio, options.seed)
    else:
        groups = (compositions if options.by == "composition" else prototypes)(dataset)
        split_indices = assign_splits(np.array(groups), options.ratio, options.seed)
    counts = np.bincount(split_indices, minlength=len(SPLITS)).tolist()
    log.info(
        "Split by %s into %d train, %d val and %d test crystals; see %s", options.by, *counts, path
    )
    try:
        write_splits(path, keys, split_indices, groups)
    except OSError as error:
        log.warning("Cannot write %s (%s). This does not affect the splits", path, error)
    return split_indices


def assign_splits(groups: np.ndarray, ratio: Sequence[float], seed: int) -> np.ndarray:
    """Assign groups of crystals, in random order, each to the split furthest below its share.

    So a split exceeds its share by less than the size of the largest group.

    Args:
        groups: (B,) name or number of each crystal's group.
        ratio: relative sizes of train, val and test.
        seed: seed of the random order.

    Returns:
        (B,) int64, the index in `SPLITS` of each crystal's split.
    """
    unique, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    remaining = np.array(ratio, dtype=float) / np.sum(ratio) * len(groups)
    split_indices = np.zeros(len(unique), dtype=np.int64)
    for i in np.random.default_rng(seed).permutation(len(unique)):
        split_indices[i] = remaining.argmax()
        remaining[split_indices[i]] -= sizes[i]
    return split_indices[group]


# Groups


def compositions(dataset: CrystalDataset) -> list[str]:
    """The reduced formula of each crystal."""
    return [formula(crystal) for crystal in _crystals(dataset)]


def formula(crystal: Crystal) -> str:
    """The reduced formula, as pymatgen writes it."""
    return reduced_formula(Composition(Counter(crystal.atom_types.tolist())))


def prototypes(dataset: CrystalDataset) -> list[str]:
    """The prototype of each crystal."""
    crystals = track(_crystals(dataset), "Prototypes", total=len(dataset), transient=True)
    return [prototype(crystal) for crystal in crystals]


def prototype(crystal: Crystal, symprec: float = PROTOTYPE_SYMPREC) -> str:
    """A label for the prototype of a crystal, which does not depend on its elements or its cell.

    For example, `AB 225 4(-3mm) 4(-3mm)`: the anonymous formula, the number of the space group, and
    for each element the multiplicity (in the conventional cell) and site symmetry of its orbits.

    Wyckoff letters would be more specific, but depend on which of several equivalent origins is
    chosen: in a cubic perovskite, it can be at A or at B. The orientations in the site-symmetry
    symbols are dropped for the same reason. So different prototypes can share a label. Crystals of
    the same prototype get different labels only if one is distorted by more than `symprec`, or is
    the mirror image in a chiral space group.

    Args:
        symprec: tolerance of spglib for positions, Å.

    Returns:
        The label. If spglib finds no symmetry, it contains the reduced formula.
    """
    found = symmetry_of(crystal, symprec)
    if found is None:
        return f"{formula(crystal)} without symmetry"
    multiple = len(found.std_types) / crystal.num_atoms
    elements: dict[int, list[str]] = defaultdict(list)
    _, first, sizes = np.unique(
        found.crystallographic_orbits, return_index=True, return_counts=True
    )
    for atom, size in zip(first, sizes, strict=True):
        symbol = "".join(sorted(found.site_symmetry_symbols[atom].replace(".", "")))
        elements[int(crystal.atom_types[atom])].append(f"{round(size * multiple)}({symbol})")
    composition = Composition(Counter(crystal.atom_types.tolist()))
    sites = sorted("+".join(sorted(orbits)) for orbits in elements.values())
    return f"{composition.anonymized_formula} {found.number} {' '.join(sites)}"


def _crystals(dataset: CrystalDataset) -> Iterator[Crystal]:
    for indices in torch.arange(len(dataset)).split(1000):
        yield from split_batch(dataset.batch(indices))


# splits.csv


def write_splits(
    path: Path, keys: Sequence[tuple[str, str]], split_indices: np.ndarray, groups: Sequence[str]
) -> None:
    """Write a `splits.csv` with the columns `COLUMNS` and one row per crystal.

    Args:
        keys: ID and file of each crystal.
        split_indices: (B,) the index in `SPLITS` of each crystal's split.
        groups: name of each crystal's group; empty if there are no groups.
    """
    with (
        new_file(path, overwrite=True) as partial,
        partial.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        rows = zip(keys, split_indices.tolist(), groups, strict=True)
        writer.writerows([id_, source, SPLITS[i], group] for (id_, source), i, group in rows)


def read_splits(path: Path, keys: Sequence[tuple[str, str]]) -> np.ndarray:
    """Read a `splits.csv` that lists exactly the given crystals.

    Crystals with the same ID and file are matched in the order of the rows.

    Args:
        keys: ID and file of each crystal.

    Returns:
        (B,) int64, the index in `SPLITS` of each crystal's split.

    Raises:
        DataError: if it cannot be read, or does not list exactly these crystals.
    """
    listed = _read_split_indices(path)
    split_indices, missing = np.zeros(len(keys), dtype=np.int64), []
    for i, key in enumerate(keys):
        if listed[key]:
            split_indices[i] = listed[key].popleft()
        else:
            missing.append(key)
    unknown = [key for key, rest in listed.items() for _ in rest]
    if missing or unknown:
        raise DataError(
            f"{path} does not match the data. Only in the data: {_summarize(missing)}. Only in the "
            f"file: {_summarize(unknown)}. Use it with the same files and the same data options as "
            "when it was written. With a checkpoint, specify other data with data=structures "
            "data.data_dir=..."
        )
    return split_indices


def look_up_splits(path: Path, keys: Sequence[tuple[str, str]]) -> list[str | None]:
    """The split of each crystal according to a `splits.csv`.

    Args:
        keys: ID and file of each crystal. The `splits.csv` may lack some, for example those that
            were rejected in training.

    Returns:
        The name of each crystal's split; None if the `splits.csv` does not list the crystal.

    Raises:
        DataError: if it cannot be read, or lists crystals that are not in `keys`.
    """
    listed = _read_split_indices(path)
    splits = [SPLITS[listed[key].popleft()] if listed[key] else None for key in keys]
    if unknown := [key for key, rest in listed.items() for _ in rest]:
        raise DataError(
            f"{path} does not match the data, which lack {_summarize(unknown)}. Use it with the "
            "same files, under the same names, as when it was written"
        )
    return splits


def _read_split_indices(path: Path) -> dict[tuple[str, str], deque[int]]:
    """The indices in `SPLITS` for each ID and file, in the order of the rows."""
    listed: dict[tuple[str, str], deque[int]] = defaultdict(deque)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for line, row in enumerate(csv.DictReader(file), start=2):
                if row.get("split") not in SPLITS:
                    raise DataError(
                        f"{path} line {line}: the split is {row.get('split')!r}, but must be one "
                        f"of {', '.join(SPLITS)}"
                    )
                listed[row["id"], row["file"]].append(SPLITS.index(row["split"]))
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} is not a readable splits.csv with the columns {', '.join(COLUMNS)}: {error!r}"
        ) from error
    return listed


def _summarize(keys: Sequence[tuple[str, str]]) -> str:
    """`2 crystals: a (a.cif), b (b.cif)`, or `no crystals`."""
    if not keys:
        return "no crystals"
    shown = ", ".join(f"{id_} ({source})" for id_, source in keys[:_MAX_CRYSTALS_SHOWN])
    rest = len(keys) - _MAX_CRYSTALS_SHOWN
    more = f" and {rest:,} more" if rest > 0 else ""
    return f"{len(keys):,} crystal{'s' if len(keys) > 1 else ''}: {shown}{more}"
