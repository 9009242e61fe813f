"""A folder of results that grows line by line, so that a run that was ended goes on where it was.

`settings.json` says what was judged and how; a later run in the same folder must have the same
settings. `results.jsonl` has one JSON object per line: the result of one crystal in one state.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from src.utils.errors import UserError
from src.utils.output import OutputError
from src.utils.strict_json import json_text, write_json

logger = logging.getLogger(__name__)

State = Literal["as_generated", "relaxed"]
Row = dict[str, Any]
Results = dict[tuple[State, int], Row]

STATES: tuple[State, ...] = ("as_generated", "relaxed")

SETTINGS = "settings.json"
RESULTS = "results.jsonl"
LATER = ("relaxation",)


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a folder, or compare them with those that are there.

    Those in `LATER` may be None at first, and be given a value by a later run.

    Raises:
        OutputError: if the folder has other files, or was made with other settings; the message
            names them.
    """
    path = folder / SETTINGS
    if not path.is_file():
        if any(not each.name.startswith(".") for each in folder.iterdir()):
            raise OutputError(
                f"{folder} has files but no {SETTINGS}, so it has something else: choose another "
                "output"
            )
        _replace(path, settings)
        return
    known = read_settings(folder)
    different = [
        f"{name} was {known.get(name)!r}, is {settings.get(name)!r}"
        for name in sorted({*known, *settings})
        if known.get(name) != settings.get(name)
        and not (name in LATER and None in (known.get(name), settings.get(name)))
    ]
    if different:
        raise OutputError(
            f"{folder} has results with other settings ({'; '.join(different)}): choose another "
            "output, or replace them with overwrite=true"
        )
    _replace(path, {**known, **{k: v for k, v in settings.items() if v is not None}})


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a folder of results.

    Raises:
        UserError: if it has none, or they cannot be read.
    """
    path = folder / SETTINGS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): is it a folder of results?") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not an object with settings: is it a folder of results?")
    return content


def read_results(folder: Path) -> Results:
    """The last result of each crystal in each state, by state and index.

    A last line without an end, which a run that is killed may leave, does not count.

    Raises:
        UserError: if another line cannot be read; the message names file and line.
    """
    path = folder / RESULTS
    if not path.is_file():
        return {}
    rows: Results = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                rows[row["state"], int(row["index"])] = row
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}, line {number} is damaged ({error}): remove the line, so that its "
                    "crystal is judged again"
                ) from error
    return rows


def merge_results(folders: Sequence[Path], output: Path) -> None:
    """Join the results of all shards of one set of crystals.

    Args:
        folders: one for each shard, in any order.
        output: an empty folder, or one with the same joined results.

    Raises:
        UserError: if settings differ, or a crystal is missing; the message says which.
    """
    settings = [read_settings(folder) for folder in folders]
    first = {**settings[0], "shard": None}
    for folder, other in zip(folders, settings, strict=True):
        for name in sorted({*first, *other} - {"shard"}):
            if first.get(name) != other.get(name):
                raise UserError(
                    f"{folder} and {folders[0]} do not belong together: {name} is "
                    f"{other.get(name)!r} in the first, {first.get(name)!r} in the second"
                )
    check_settings(output, first)
    states = STATES if first["relaxation"] is not None else STATES[:1]
    rows = {key: row for folder in folders for key, row in read_results(folder).items()}
    known = read_results(output)
    failed = {i for (state, i), row in rows.items() if state == "as_generated" and "failed" in row}
    with appending(output) as append:
        for state in states:
            for index in range(first["num_crystals"]):
                row = rows.get((state, index))
                if row is None and not (state == "relaxed" and index in failed):
                    raise UserError(
                        f"none of {', '.join(map(str, folders))} has crystal {index} {state}: "
                        "merge all shards, when their runs have ended"
                    )
                if row is not None and (state, index) not in known:
                    append(row)


@contextmanager
def appending(folder: Path) -> Iterator[Any]:
    """Yield a function that appends a row to the results at once.

    An incomplete last line is removed first.
    """
    path = folder / RESULTS
    with path.open("ab+") as file:
        _remove_unfinished(file)

        def append(row: Row) -> None:
            file.write(json_text(row, indent=None).encode() + b"\n")
            file.flush()

        yield append


def _remove_unfinished(file: Any) -> None:
    end = file.seek(0, os.SEEK_END)
    start = end
    while start > 0:  # in steps, because the file may be large
        step = min(start, 2**16)
        file.seek(start - step)
        if (place := file.read(step).rfind(b"\n")) >= 0:
            start += place + 1 - step
            break
        start -= step
    if start < end:
        logger.warning("Removed an incomplete last line of %s", file.name)
        file.truncate(start)
    file.seek(0, os.SEEK_END)


def _replace(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_name(f".partial-{path.name}")
    write_json(partial, content)
    os.replace(partial, path)
