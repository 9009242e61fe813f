"""Which file or folder holds a split. Whatever looks for one asks here.

This module imports no torch, so that a command that fetches data starts quickly.
"""

import gzip
import zlib
from collections import defaultdict
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePath, PurePosixPath

from src.data.readers import SPLIT_NAMES, SPLITS, DataError, columns_of

# How the file of a split ends, in small letters: formats of many crystals.
SUFFIXES = (
    *(".csv", ".csv.gz", ".parquet"),
    *(".extxyz", ".extxyz.gz", ".xyz", ".xyz.gz", ".json", ".json.gz", ".db", ".traj", ".zip"),
)
_CIFS = (".cif", ".cif.gz")

SPLITS_CSV = "splits.csv"  # says which split each of the loose crystals in its folder is in


def find_splits(folder: Path, pattern: str = "*", with_folders: bool = True) -> dict[str, Path]:
    """The file or folder of each split that a data folder holds.

    A split is called as `SPLIT_NAMES` has it, in small or capital letters: `train.csv`,
    `Valid.parquet`, `test.extxyz`. CIFs and folders may be called so by chance, so they count only
    where there is one for train and one for another split: `train.cif` and `test.cif`, or the
    folders `train` and `test` with crystals in them. Hidden files are passed over.

    Args:
        folder: of the data. What is no folder holds no splits.
        pattern: which CIFs, and which files of folders, are crystals, by their names.
        with_folders: whether folders count. They do not where one has said how their crystals are
            dealt out.

    Returns:
        By split, in the order of `SPLITS`; empty where there are none.

    Raises:
        DataError: if two files or folders could be the same split. A file and its `.gz` with the
            same content are one; the plain file is then the split's.
    """
    if not folder.is_dir():
        return {}
    files: dict[str, list[Path]] = defaultdict(list)
    cifs: dict[str, list[Path]] = defaultdict(list)
    folders: dict[str, list[Path]] = defaultdict(list)
    for path in folder.iterdir():
        split, suffix = _split_and_suffix(path)
        if split is None:
            continue
        if path.is_dir():
            if with_folders and suffix in ("", *SUFFIXES):
                folders[split].append(path)
        elif suffix in SUFFIXES:
            files[split].append(path)
        elif suffix in _CIFS and fnmatchcase(path.name, pattern):
            cifs[split].append(path)
    if _are_splits(folders):  # looks into them only where that can matter
        filled = {
            split: [path for path in paths if crystal_files(path, pattern)]
            for split, paths in folders.items()
        }
        folders = defaultdict(list, {split: paths for split, paths in filled.items() if paths})
    for others in (cifs, folders):
        if _are_splits(others):
            for split, paths in others.items():
                files[split] += paths
    return {split: _the_one(split, files[split]) for split in SPLITS if split in files}


def find_split(
    folder: Path, split: str, option: str | None = None, with_folders: bool = True
) -> Path | None:
    """The file or folder of one split, as `find_splits` finds it.

    Args:
        split: as in `SPLIT_NAMES`.
        option: that says which split, for messages.
        with_folders: see there.

    Returns:
        None where there are no splits at all.

    Raises:
        DataError: if there are splits, but not this one; if two files could be the same split; if
            no split is called so.
    """
    name = SPLIT_NAMES.get(split.lower())
    if name is None:
        said = f"{option}={split}" if option else repr(split)
        raise DataError(
            f"{said} is no split, those are {', '.join(SPLITS)}: choose one, or name a file in "
            "place of its folder"
        )
    found = find_splits(folder, with_folders=with_folders)
    if found and name not in found:
        there = ", ".join(f"{each} ({path.name})" for each, path in found.items())
        choose = f"choose one of those with {option}, " if option else ""
        raise DataError(
            f"{folder} has no split {name!r} (it has {there}): {choose}add {name}.csv, or name a "
            "file in place of the folder"
        )
    return found.get(name)


def own_splits_csv(folder: Path) -> Path | None:
    """The `splits.csv` of a folder of loose crystals, if it has one.

    Raises:
        DataError: if there is one that cannot be read.
    """
    path = folder / SPLITS_CSV
    return path if path.is_file() and _says_splits(path) else None


def crystal_files(folder: Path, pattern: str = "*") -> list[Path]:
    """The files in a folder, at any depth, that may hold crystals, sorted.

    Args:
        pattern: of their names.
    """
    return [
        file
        for file in sorted(folder.rglob("*"))
        if fnmatchcase(file.name, pattern)
        and not is_hidden(file.relative_to(folder))
        and file.is_file()
        and not is_splits_csv(file)
    ]


def is_hidden(path: Path) -> bool:
    """Whether a relative path, or a folder in it, has a name that begins with a dot."""
    return any(part.startswith(".") for part in path.parts)  # `..` too


def is_splits_csv(path: Path) -> bool:
    """Whether a file is such a table, and thus holds no crystals."""
    try:
        return path.name == SPLITS_CSV and _says_splits(path)
    except DataError:
        return False


def folders_with_splits(files: Iterable[str]) -> list[str]:
    """The folders, among those of files that are read as one, which hold splits.

    Args:
        files: their paths below what is read, with slashes.

    Returns:
        Relative paths, `.` for what is read itself.
    """
    splits: dict[PurePosixPath, set[str]] = defaultdict(set)
    for file in map(PurePosixPath, files):
        for path in (file, *file.parents):
            split, suffix = _split_and_suffix(path)
            if split is not None and suffix in (SUFFIXES if path is file else ("",)):
                splits[path.parent].add(split)
    return sorted(str(folder) for folder, names in splits.items() if _are_splits(names))


def _split_and_suffix(path: PurePath) -> tuple[str | None, str]:
    """`val` and `.csv.gz` of `Valid.CSV.gz`; a file of any other name is of no split."""
    stem, dot, suffix = path.name.partition(".")
    return SPLIT_NAMES.get(stem.lower()), (dot + suffix).lower()


def _are_splits(names: Iterable[str]) -> bool:
    found = set(names)
    return "train" in found and len(found) > 1


def _says_splits(path: Path) -> bool:
    columns = columns_of(path)
    return "split" in columns and "cif" not in columns


def _the_one(split: str, candidates: list[Path]) -> Path:
    candidates = sorted(candidates, key=lambda path: (len(path.name), path.name))
    plain = candidates[0]
    if len(candidates) == 1 or (len(candidates) == 2 and _is_packed(plain, candidates[1])):
        return plain
    names = " and ".join(path.name for path in candidates)
    raise DataError(
        f"{plain.parent} has {len(candidates)} candidates for the split {split!r}: {names}. Delete "
        "all but one or move them to another folder, or name the one that is meant in place of "
        "the folder"
    )


def _is_packed(plain: Path, packed: Path) -> bool:
    """Whether the one is the other's content, as `gzip --keep` leaves them."""
    if packed.name.lower() != f"{plain.name.lower()}.gz" or plain.is_dir() or packed.is_dir():
        return False
    try:
        with plain.open("rb") as first, gzip.open(packed) as second:
            while content := first.read(2**20):
                if second.read(len(content)) != content:
                    return False
            return not second.read(1)
    except (OSError, EOFError, zlib.error):
        return False
