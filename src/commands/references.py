"""Find and read crystals to evaluate, and reference crystals, for several commands."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.progress import track

from src.data.readers import SPLIT_NAMES, DataError
from src.data.split_files import find_split, find_splits_csv, folders_with_splits
from src.data.splits import look_up_splits
from src.data.structures import NamedStructure, Skipped, StructureReader, iter_structures

log = logging.getLogger(__name__)

_SAMPLE_FILES = {"samples.extxyz", "samples.json", "cifs", "cifs.zip", "report.html"}
_MAX_LOGGED = 20  # skipped entries; all of them are in skipped.csv


def name_of_input(source: Path) -> str:
    """The name of a folder, or of a file without its suffixes, for results."""
    return source.name if source.is_dir() else source.name.partition(".")[0]


def samples_file(source: Path) -> Path:
    """The `samples.extxyz` of a folder that a sampling command wrote, or the path itself.

    Such a folder holds the same crystals as CIFs. Other files in it are ignored with a warning.
    """
    samples = source / "samples.extxyz"
    if not samples.is_file():
        return source
    others = {path.name for path in source.iterdir() if not path.name.startswith(".")}
    if others := others - _SAMPLE_FILES:
        log.warning(
            "In %s, only samples.extxyz is evaluated; ignored: %s. To evaluate "
            "another file, use input=FILE",
            source, ", ".join(sorted(others)),
        )  # fmt: skip
    return samples


def num_not_written(samples: Path) -> int:
    """How many samples are not in a `samples.extxyz`, by the `samples.json` beside it.

    They could not be written or, with `only_valid=true`, were left out. A warning is logged.

    Args:
        samples: the path that crystals are read from. For any other path, there are none.
    """
    listed = samples.with_name("samples.json")
    if samples.name != "samples.extxyz" or not listed.is_file():
        return 0
    try:
        rows = json.loads(listed.read_text(encoding="utf-8")).get("samples", [])
        count = sum(not row.get("written", True) for row in rows)
    except (ValueError, AttributeError, TypeError) as error:
        log.warning("%s cannot be read (%s): samples without a file are not counted", listed, error)
        return 0
    if count:
        log.warning(
            "%d samples are listed in %s and not written to %s: they are in no figure",
            count, listed, samples.name,
        )  # fmt: skip
    return count


@dataclass(frozen=True, slots=True)
class Reference:
    """The location of a set of reference crystals.

    Attributes:
        path: the file or folder with the crystals.
        split_file: the `splits.csv` that selects some of these crystals; None for all of them.
        split: which split to select, as named in that file.
    """

    path: Path
    split_file: Path | None = None
    split: str | None = None

    def __str__(self) -> str:
        selection = f" ({self.split} of {self.split_file})" if self.split_file else ""
        return f"{self.path}{selection}"

    def crystals(
        self, read: Callable[[Path], tuple[list[NamedStructure], list[Skipped]]]
    ) -> list[NamedStructure]:
        """Read the crystals.

        Args:
            read: `read_crystals`, or a cached version of it.

        Raises:
            DataError: if there are no crystals, if they cannot be read, or if they do not match
                `split_file`.
        """
        items, _ = read(self.path)
        if self.split_file is None:
            return items
        keys = [(item.id, item.source.as_posix()) for item in items]
        splits = look_up_splits(self.split_file, keys)
        if num_unlisted := splits.count(None):
            log.warning(
                "%d of %d crystals in %s are not listed in %s and are left out",
                num_unlisted, len(items), self.path, self.split_file,
            )  # fmt: skip
        kept = [item for item, split in zip(items, splits, strict=True) if split == self.split]
        if not kept:
            raise DataError(
                f"{self.split_file} lists no crystal of {self.path} in the split {self.split!r}: "
                "choose another split"
            )
        return kept


def find_reference(
    path: str | Path,
    split: str | None,
    option: str | None = None,
    split_file: str | Path | None = None,
) -> Reference:
    """Find the crystals of a split, in the same way as training does.

    Args:
        path: a folder with splits (see `src.data.split_files.find_splits`), a folder of crystals,
            which may contain a `splits.csv`, or a file. If there are no splits, all crystals are
            used.
        split: the name of the split; None for all crystals.
        option: the config option that gave the split, for messages.
        split_file: the `splits.csv` for crystals that do not come with splits.

    Raises:
        DataError: if there are splits but not this one, if several files could be this split, or if
            splits in a subfolder or archive would be pooled.
    """
    path = Path(path).expanduser()
    if split is None:
        return Reference(path)
    if (found := find_split(path, str(split), option, with_folders=split_file is None)) is not None:
        if split_file is not None:
            raise DataError(
                f"{path} already contains splits, such as {found.name}: leave out split_file, or "
                "give the path of the file or folder that it belongs to"
            )
        return Reference(found)
    splits_csv = Path(split_file).expanduser() if split_file else find_splits_csv(path)
    if splits_csv is not None:
        return Reference(path, splits_csv, SPLIT_NAMES[str(split).lower()])
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".zip"):
        if inner_folders := folders_with_splits(StructureReader(path).sources):
            inner = path if inner_folders[0] == "." else path / inner_folders[0]
            use_all = f", or use all crystals with {option}=null" if option else ""
            raise DataError(
                f"Reading {path} would pool the splits in {inner}: give the path of that folder "
                f"(unpack it first if it is in an archive) or of a file in it{use_all}"
            )
        log.warning(
            "%s contains no splits: all its crystals are used, so any test crystals among them "
            "count as known",
            path,
        )
    return Reference(path)


def read_crystals(path: Path) -> tuple[list[NamedStructure], list[Skipped]]:
    """Read the crystals in a file or folder.

    Args:
        path: any path that `src.data.structures.iter_structures` reads.

    Returns:
        The crystals, and the entries that could not be read, which are also logged.

    Raises:
        DataError: if the path does not exist, or no crystal in it can be read.
    """
    items: list[NamedStructure] = []
    skipped: list[Skipped] = []
    for item in track(iter_structures(path), f"Reading {path}", total=None, transient=True):
        if isinstance(item, Skipped):
            skipped.append(item)
        else:
            items.append(item)
    for where, reason in skipped[:_MAX_LOGGED]:
        log.warning("Skipped %s: %s", where, reason)
    if len(skipped) > _MAX_LOGGED:
        log.warning("... %d entries of %s skipped in total", len(skipped), path)
    if not items:
        raise DataError(f"{path} contains no crystal that can be read ({len(skipped)} skipped)")
    return items, skipped
