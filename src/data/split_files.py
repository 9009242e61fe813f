"""Find the file or folder of each split in a data folder.

All code that looks for splits uses this module. It does not import torch, so that the download
command starts quickly.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePath, PurePosixPath

from src.data.packing import PACKED, UNPACKING_ERRORS, open_unpacked, unpacked_name
from src.data.readers import SPLIT_NAMES, SPLITS, DataError, columns_of

log = logging.getLogger(__name__)

# Suffixes that the file of a split may have, in lower case: formats for many crystals.
_PLAIN_SUFFIXES = (
    ".csv", ".parquet", ".extxyz", ".xyz", ".json", ".jsonl", ".ndjson", ".db", ".traj",
)  # fmt: skip
SUFFIXES = (
    *_PLAIN_SUFFIXES,
    *(plain + packed for plain in _PLAIN_SUFFIXES for packed in PACKED),
    ".zip",
)
_CIF_SUFFIXES = (".cif", *(f".cif{packed}" for packed in PACKED))

SPLITS_CSV = "splits.csv"  # lists the split of each crystal in its folder


def find_splits(folder: Path, pattern: str = "*", with_folders: bool = True) -> dict[str, Path]:
    """Find the file or folder of each split in a data folder.

    The name must be one of `SPLIT_NAMES`, in upper or lower case, as in `train.csv`,
    `Valid.parquet` or `test.extxyz`. A single CIF or a folder may have such a name by chance. So
    they count only if there is one for train and one for another split: `train.cif` and `test.cif`,
    or folders `train` and `test` that contain crystals. Hidden files are ignored.

    Args:
        folder: the data folder. If it is not a folder, there are no splits.
        pattern: shell-style pattern for the names of CIFs, and of files in the folders of splits,
            that contain crystals.
        with_folders: whether folders can be splits. Use False if the user has specified how to
            split the crystals.

    Returns:
        The path of each split, in the order of `SPLITS`. Empty if there are no splits.

    Raises:
        DataError: if several files or folders could be the same split. A file and its `.gz` with
            the same content are not ambiguous: the uncompressed file is used.
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
        elif suffix in _CIF_SUFFIXES and fnmatchcase(path.name, pattern):
            cifs[split].append(path)
    if _has_train_and_another(folders):  # avoids searching folders needlessly
        filled = {
            split: [path for path in paths if crystal_files(path, pattern)]
            for split, paths in folders.items()
        }
        folders = defaultdict(list, {split: paths for split, paths in filled.items() if paths})
    for others in (cifs, folders):
        if _has_train_and_another(others):
            for split, paths in others.items():
                files[split] += paths
        else:
            for split in others.keys() & files.keys():
                log.warning(
                    "%s is used for the split %r; %s beside it is not read",
                    files[split][0], split, ", ".join(path.name for path in others[split]),
                )  # fmt: skip
    return {split: _only_candidate(split, files[split]) for split in SPLITS if split in files}


def find_split(
    folder: Path, split: str, option: str | None = None, with_folders: bool = True
) -> Path | None:
    """Find the file or folder of one split, see `find_splits`.

    Args:
        split: one of `SPLIT_NAMES`.
        option: the config option that gave the split, for messages.
        with_folders: see `find_splits`.

    Returns:
        None if there are no splits at all.

    Raises:
        DataError: if the name is not that of a split, if there are splits but not this one, or if
            several files could be the same split.
    """
    name = SPLIT_NAMES.get(split.lower())
    if name is None:
        given = f"{option}={split}" if option else repr(split)
        raise DataError(
            f"{given} is not a split: choose one of {', '.join(SPLITS)}, or give the path of a "
            "file instead of the folder"
        )
    found = find_splits(folder, with_folders=with_folders)
    if found and name not in found:
        available = ", ".join(f"{each} ({path.name})" for each, path in found.items())
        choose = f"choose one of these with {option}, " if option else ""
        raise DataError(
            f"{folder} has no split {name!r} (it has {available}): {choose}add {name}.csv, or give "
            "the path of a file instead of the folder"
        )
    return found.get(name)


def find_splits_csv(folder: Path) -> Path | None:
    """The `splits.csv` in a folder of crystals, or None if there is none.

    Raises:
        DataError: if it cannot be read.
    """
    path = folder / SPLITS_CSV
    return path if path.is_file() and _lists_splits(path) else None


def crystal_files(folder: Path, pattern: str = "*") -> list[Path]:
    """The files in a folder, at any depth, that may contain crystals, sorted.

    Args:
        pattern: shell-style pattern for the names of the files.
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
    """Whether any part of a relative path starts with a dot. This includes `..`."""
    return any(part.startswith(".") for part in path.parts)


def is_splits_csv(path: Path) -> bool:
    """Whether a file is a `splits.csv` that lists splits, and so contains no crystals."""
    try:
        return path.name == SPLITS_CSV and _lists_splits(path)
    except DataError:
        return False


def folders_with_splits(files: Iterable[str]) -> list[str]:
    """The folders that contain splits, among the folders of some files.

    Args:
        files: paths of the files, relative to the source that is read, with forward slashes.

    Returns:
        Relative paths of the folders; `.` is the source itself.
    """
    splits: dict[PurePosixPath, set[str]] = defaultdict(set)
    for file in map(PurePosixPath, files):
        for path in (file, *file.parents):
            split, suffix = _split_and_suffix(path)
            if split is not None and suffix in (SUFFIXES if path is file else ("",)):
                splits[path.parent].add(split)
    return sorted(str(folder) for folder, names in splits.items() if _has_train_and_another(names))


def _split_and_suffix(path: PurePath) -> tuple[str | None, str]:
    """`val` and `.csv.gz` for `Valid.CSV.gz`. The split is None if the name is of no split."""
    stem, dot, suffix = path.name.partition(".")
    return SPLIT_NAMES.get(stem.lower()), (dot + suffix).lower()


def _has_train_and_another(names: Iterable[str]) -> bool:
    found = set(names)
    return "train" in found and len(found) > 1


def _lists_splits(path: Path) -> bool:
    columns = columns_of(path)
    return "split" in columns and "cif" not in columns


def _only_candidate(split: str, candidates: list[Path]) -> Path:
    candidates = sorted(candidates, key=lambda path: (len(path.name), path.name))
    first = candidates[0]
    if len(candidates) == 1 or (len(candidates) == 2 and _is_packed_copy(candidates[1], first)):
        return first
    names = " and ".join(path.name for path in candidates)
    raise DataError(
        f"{first.parent} has {len(candidates)} candidates for the split {split!r}: {names}. Keep "
        "one and delete the others or move them to another folder, or give the path of one of them "
        "instead of the folder"
    )


def _is_packed_copy(packed: Path, plain: Path) -> bool:
    """Whether a packed file has the same content as the plain one, as after `gzip --keep`."""
    if unpacked_name(packed.name).lower() != plain.name.lower() or packed.name == plain.name:
        return False
    if plain.is_dir() or packed.is_dir():
        return False
    try:
        with plain.open("rb") as first, open_unpacked(packed) as second:
            while content := first.read(2**20):
                if second.read(len(content)) != content:
                    return False
            return not second.read(1)
    except UNPACKING_ERRORS:
        return False
