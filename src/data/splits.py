"""Which crystals are for training, validation and test: as their files say, or dealt out here."""

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
from src.data.cif import Crystal
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
from src.data.split_files import SPLITS_CSV, find_splits, folders_with_splits, own_splits_csv
from src.data.structures import FILE, SPLIT, StructureReader, split_batch
from src.utils.formulas import reduced_formula
from src.utils.output import new_file

log = logging.getLogger(__name__)

SPLIT_BY = ("random", "column", "composition", "prototype", "file")
PROTOTYPE_SYMPREC = 0.1  # Å, the Materials Project's tolerance for space groups
COLUMNS = ("id", "file", "split", "group")  # of splits.csv

_MAX_NAMED = 5


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """How crystals that are in no split yet are dealt out.

    Args:
        by: `random`: each for itself. `composition`: those of one reduced formula stay together.
            `prototype`: those of one prototype do (see `prototype`). `column`: as a property of
            each says. `file`: as a `splits.csv` of before says.
        ratio: train, val, test, for `random`, `composition` and `prototype`.
        seed: of the shuffling there.
        column: name of the property, for `column`.
        file: path of the `splits.csv`, for `file`.
    """

    by: str = "random"
    ratio: Sequence[float] = (0.8, 0.1, 0.1)
    seed: int = 0
    column: str | None = None
    file: Path | None = None

    def check(self) -> None:
        """Refuse options that cannot be met.

        Raises:
            DataError: if one is unknown, or one that `by` needs is missing.
        """
        if self.by not in SPLIT_BY:
            raise DataError(f"data.split_by is one of {', '.join(SPLIT_BY)}, not {self.by!r}")
        if len(self.ratio) != 3 or not min(self.ratio) >= 0 or not 0 < sum(self.ratio) < math.inf:
            raise DataError(f"split_ratio is train, val, test, none negative; not {self.ratio}")
        for name in ("column", "file"):
            if (self.by == name) != (getattr(self, name) is not None):
                raise DataError(f"data.split_by={name} and data.split_{name}=... go together")


def find_readers(
    data_dir: Path, properties: Sequence[str] = (), pattern: str = "*.cif",
    options: SplitOptions | None = None,
) -> StructureReader | dict[str, Reader]:  # fmt: skip
    """A reader for each split of a folder that holds them, else one for all crystals.

    A folder with `train.csv` (and `val`, `test`; other formats and folders too: see
    `src.data.split_files.find_splits`) is taken as it is split there. All else is read by one
    `StructureReader`.

    Args:
        data_dir: a folder, or one file.
        properties: names of what rides along.
        pattern: which files of a folder that holds no splits are read, by their names.
        options: of dealing out; None: by their defaults.

    Raises:
        DataError: if there is nothing there to read, if two files could be the same split, if none
            of the splits has one of the properties, or if the options cannot be met.
    """
    options = options or SplitOptions()
    options.check()
    fetch = (
        f" `python scripts/download_data.py {data_dir.name} --data-dir {data_dir.parent}` fetches "
        "this known set; so does data.download=true."
        if data_dir.name in KNOWN_SETS
        else ""
    )
    if not data_dir.exists():
        raise DataError(
            f"There is no folder {data_dir}. Point data.data_dir to a folder with train.csv, "
            "val.csv and test.csv (or .csv.gz; columns material_id, cif), or with .cif files; "
            f"experiment=prototypes/vae_dng trains on the data that come with the project.{fetch}"
        )
    names = tuple(properties)
    is_dealt_out = options.by != "random"  # one has said how
    found = find_splits(data_dir, pattern, with_folders=not is_dealt_out)
    if readers := _split_readers(data_dir, found, names, pattern):
        if is_dealt_out:
            raise DataError(
                f"{data_dir} holds the splits {', '.join(readers)} already: leave data.split_by "
                "out (with a checkpoint: name the data anew, data=default data.data_dir=...), or "
                "point data.data_dir to one file"
            )
        return readers
    reader = StructureReader(data_dir, names, pattern, options.column)
    if not reader.files:
        raise DataError(
            f"{data_dir} holds neither train.csv (or .csv.gz) nor any file {pattern}: point "
            f"data.data_dir to a folder that does; data=structures reads other formats, too.{fetch}"
        )
    if options_at(data_dir, options).by == "random":
        for folder in folders_with_splits(reader.sources):
            log.warning(
                "%s: %s holds splits of its own, which are mixed and dealt out at random. To use "
                "them, unpack an archive, and point data.data_dir to the folder that holds them",
                data_dir, "it" if folder == "." else folder,
            )  # fmt: skip
    return reader


def options_at(data_dir: Path, options: SplitOptions) -> SplitOptions:
    """How the loose crystals of a folder are dealt out: by the `splits.csv` that lies there, where
    `options` leave it to chance.

    Raises:
        DataError: if there is one that cannot be read.
    """
    if options.by != "random" or (path := own_splits_csv(data_dir)) is None:
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
        is_csv = isinstance(readers[split], CsvReader)  # the other says so when it reads
        columns.update(columns_of(path) if is_csv and names else names)
    if absent := sorted(set(names) - columns) if readers else []:
        there = sorted(columns - {"cif", *ID_COLUMNS})
        raise DataError(
            f"{folder}: no split has a column {absent}; the columns there are: "
            f"{', '.join(there) or 'none'}"
        )
    return readers


def deal_out(
    whole: CrystalDataset, reader: StructureReader, options: SplitOptions
) -> dict[str, CrystalDataset]:
    """The splits of crystals that are in none yet; one that has no crystal is left out.

    They are written to a `splits.csv` in the folder of the cache of `whole`, which the log names,
    and read from there the next time. One that lies among the crystals is used as it is, where
    `options` leave it to chance.

    Args:
        whole: all crystals of `reader`, in its order.

    Raises:
        DataError: if the `splits.csv` cannot be used, or does not name just these crystals.
    """
    if not len(whole):
        return {"train": without_marks(whole)}
    files = reader.sources
    sources = [files[int(place)] for place in whole.y[FILE].tolist()]
    keys = list(zip(whole.ids, sources, strict=True))
    given, options = options, options_at(reader.source, options)
    if given is not options:
        log.info(
            "The splits are those of %s. To deal the crystals out anew, move it away, or say "
            "data.split_by=composition or another way",
            options.file,
        )
    if options.by == "file":
        assert options.file is not None  # by SplitOptions.check
        places = read_splits(options.file, keys)
    else:
        places = _kept_or_new(whole, keys, options)
    splits = {}
    for place, split in enumerate(SPLITS):
        indices = torch.from_numpy(np.flatnonzero(places == place))
        if len(indices):
            splits[split] = without_marks(whole.subset(indices))
    return splits


def without_marks(dataset: CrystalDataset) -> CrystalDataset:
    """The same crystals without what splitting needed to know of them."""
    for name in [name for name in dataset.y if name == FILE or name.startswith(SPLIT)]:
        del dataset.y[name]
    return dataset


def add_properties(
    dataset: CrystalDataset, table: Mapping[str, Sequence[float]], names: Sequence[str], path: Path
) -> None:
    """Give a data set the properties of a table, NaN where it has no row.

    Args:
        table: by id, in the order of `names`.
        path: of the table, for messages.

    Raises:
        DataError: if it has no row for any of the crystals.
    """
    nothing = [math.nan] * len(names)
    rows = torch.tensor([table.get(id_, nothing) for id_ in dataset.ids]).reshape(-1, len(names))
    if lacking := sum(id_ not in table for id_ in dataset.ids):
        example = next(id_ for id_ in dataset.ids if id_ not in table)
        message = f"{path} has no row for {lacking:,} of {len(dataset):,} crystals, {example} first"
        if lacking == len(dataset):
            raise DataError(f"{message}: its ids are those of the crystals, without .cif")
        log.warning("%s", message)
    dataset.y.update({name: rows[:, i].clone() for i, name in enumerate(names)})


def splits_file(whole: CrystalDataset, options: SplitOptions) -> Path:
    """The `splits.csv` that says how `deal_out` dealt out `whole`."""
    if options.file is not None:
        return options.file
    assert whole.path is not None
    ratio = "_".join(f"{share:g}" for share in options.ratio)
    name = options.by if options.by == "column" else f"{options.by}_{ratio}_seed_{options.seed}"
    return whole.path.parent / name / SPLITS_CSV


def _kept_or_new(
    whole: CrystalDataset, keys: Sequence[tuple[str, str]], options: SplitOptions
) -> np.ndarray:
    path = splits_file(whole, options)
    if path.is_file():
        try:
            places = read_splits(path, keys)
        except DataError as error:
            log.warning("The splits are made again: %s", error)
        else:
            log.info("The splits are those of %s", path)
            return places
    groups = [""] * len(whole)
    if options.by == "column":
        places = whole.y[f"{SPLIT}{options.column}"].numpy().astype(np.int64)
    elif options.by == "random":
        places = assign(np.arange(len(whole)), options.ratio, options.seed)
    else:
        groups = (compositions if options.by == "composition" else prototypes)(whole)
        places = assign(np.array(groups), options.ratio, options.seed)
    counts = np.bincount(places, minlength=len(SPLITS)).tolist()
    log.info("train, val, test by %s: %d, %d, %d crystals; see %s", options.by, *counts, path)
    try:
        write_splits(path, keys, places, groups)
    except OSError as error:
        log.warning("Cannot write %s (%s); the splits are the same without it", path, error)
    return places


def assign(groups: np.ndarray, ratio: Sequence[float], seed: int) -> np.ndarray:
    """Deal out groups, shuffled, each to the split that then lacks most crystals.

    No split gets more than its share by as much as the largest group.

    Args:
        groups: (B,) name or number of the group of each crystal.
        ratio: train, val, test.
        seed: of the shuffling.

    Returns:
        (B,) int64, the place of each crystal's split in `SPLITS`.
    """
    unique, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    lacking = np.array(ratio, dtype=float) / np.sum(ratio) * len(groups)
    places = np.zeros(len(unique), dtype=np.int64)
    for each in np.random.default_rng(seed).permutation(len(unique)):
        places[each] = lacking.argmax()
        lacking[places[each]] -= sizes[each]
    return places[group]


# Groups


def compositions(dataset: CrystalDataset) -> list[str]:
    """The reduced formula of each crystal."""
    return [formula(crystal) for crystal in _crystals(dataset)]


def formula(crystal: Crystal) -> str:
    """Reduced, as pymatgen writes it."""
    return reduced_formula(Composition(Counter(crystal.atom_types.tolist())))


def prototypes(dataset: CrystalDataset) -> list[str]:
    """The prototype of each crystal."""
    crystals = track(_crystals(dataset), "Prototypes", total=len(dataset), transient=True)
    return [prototype(crystal) for crystal in crystals]


def prototype(crystal: Crystal, symprec: float = PROTOTYPE_SYMPREC) -> str:
    """A name that crystals of one prototype share, whatever their elements and cells are.

    `AB 225 4(-3mm) 4(-3mm)`: anonymous formula, number of the space group, and for each element
    the number of atoms in the conventional cell and the site symmetry of its orbits.
    Wyckoff letters would say more, and differ with the choice of the origin among the equivalent
    ones: cubic perovskites have it on A or on B. For the same reason the directions in the symbols
    of site symmetries are left out. So different prototypes can share a name, and crystals of one
    prototype get different names only where one is distorted by more than `symprec`, or is the
    mirror image in a chiral space group.

    Args:
        symprec: tolerance on positions, Å.

    Returns:
        Where spglib finds no symmetry, the reduced formula.
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
    path: Path, keys: Sequence[tuple[str, str]], places: np.ndarray, groups: Sequence[str]
) -> None:
    """Write `splits.csv`, with the columns `COLUMNS`: a row for each crystal, in their order."""
    with (
        new_file(path, overwrite=True) as partial,
        partial.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for (id_, source), place, group in zip(keys, places.tolist(), groups, strict=True):
            writer.writerow([id_, source, SPLITS[place], group])


def read_splits(path: Path, keys: Sequence[tuple[str, str]]) -> np.ndarray:
    """The splits that a `splits.csv` gives crystals; those of one id and file are taken in order.

    Args:
        keys: id and file of each crystal.

    Returns:
        (B,) int64, the place of each crystal's split in `SPLITS`.

    Raises:
        DataError: if it cannot be read, or does not name just these crystals.
    """
    said = _said(path)
    places, missing = np.zeros(len(keys), dtype=np.int64), []
    for i, key in enumerate(keys):
        if said[key]:
            places[i] = said[key].popleft()
        else:
            missing.append(key)
    unknown = [key for key, left in said.items() for _ in left]
    if missing or unknown:
        raise DataError(
            f"{path} does not fit the data: {_named(missing)} are in the data alone, and "
            f"{_named(unknown)} in the file alone. It is for the same files, read with the same "
            "options of data; with a checkpoint, data=structures data.data_dir=... names other data"
        )
    return places


def splits_of(path: Path, keys: Sequence[tuple[str, str]]) -> list[str | None]:
    """The split of each crystal by a `splits.csv`; None where training had left the crystal out.

    Args:
        keys: id and file of each crystal, also of such as the `splits.csv` does not name.

    Raises:
        DataError: if it cannot be read, or names others.
    """
    said = _said(path)
    splits = [SPLITS[said[key].popleft()] if said[key] else None for key in keys]
    if unknown := [key for key, left in said.items() for _ in left]:
        raise DataError(
            f"{path} does not fit the data, which lack {_named(unknown)} that it names: it is for "
            "the files that it was written for, under the same names"
        )
    return splits


def _said(path: Path) -> dict[tuple[str, str], deque[int]]:
    """By id and file, the places of the splits of such crystals, in the order of the rows."""
    said: dict[tuple[str, str], deque[int]] = defaultdict(deque)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for line, row in enumerate(csv.DictReader(file), start=2):
                if row.get("split") not in SPLITS:
                    raise DataError(f"{path} line {line}: the split is {row.get('split')!r}")
                said[row["id"], row["file"]].append(SPLITS.index(row["split"]))
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} is not a readable splits.csv with the columns {', '.join(COLUMNS)}: {error!r}"
        ) from error
    return said


def _named(keys: Sequence[tuple[str, str]]) -> str:
    shown = ", ".join(f"{id_} ({source})" for id_, source in keys[:_MAX_NAMED])
    more = f" and {len(keys) - _MAX_NAMED:,} more" if len(keys) > _MAX_NAMED else ""
    return f"{len(keys):,} crystals" + (f": {shown}{more}," if keys else "")
