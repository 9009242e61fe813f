"""Write the parts of an evaluation to files, and read them back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pymatgen.core import Structure
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from src.metrics.generation.judging import Part, join_parts
from src.metrics.generation.predicted_pairs import Compared, join_compared
from src.utils.errors import UserError
from src.utils.strict_json import write_json

if TYPE_CHECKING:
    from src.metrics.generation.fingerprints import Fingerprint

T = TypeVar("T")

_SETS = ("fingerprints", "test_fingerprints")
_ARRAYS = ("structure", "composition", "amd")
_RESULTS = ("known_as", "known_prototypes", "unanswered")


def checksum(structures: Sequence[Structure]) -> str:
    """A SHA-256 of cells, elements and coordinates, in their order."""
    found = hashlib.sha256()
    for structure in structures:
        kinds = " ".join(map(str, structure.species_and_occu))
        found.update(f"{len(structure)} {kinds};".encode())
        found.update(structure.lattice.matrix.tobytes())
        found.update(structure.frac_coords.tobytes())
    return found.hexdigest()


def write_part(
    folder: Path, part: Part, number: int, count: int, settings: Mapping[str, Any]
) -> None:
    """Write `part.safetensors`, with the fingerprints, and `part.json`, with everything else.

    Args:
        folder: an existing one.
        part: the results.
        number, count: which part it is, of how many.
        settings: what the results depend on, as JSON has it.
    """
    arrays: dict[str, np.ndarray] = {}
    failures = {}
    for name in _SETS:
        found = getattr(part, name)
        failures[name] = {i: x for i, x in found.items() if isinstance(x, str)}
        known = {i: x for i, x in found.items() if not isinstance(x, str)}
        arrays[f"{name}.indices"] = np.array(list(known), dtype=np.int64)
        for array in _ARRAYS:
            rows = [getattr(x, array) for x in known.values()]
            if rows and rows[0] is not None:
                arrays[f"{name}.{array}"] = np.stack(rows)
    save_file(arrays, folder / "part.safetensors")
    results = {name: getattr(part, name) for name in _RESULTS}
    content = {"number": number, "count": count, "settings": settings, "failures": failures}
    write_json(folder / "part.json", content | results)


def read_parts(folders: Sequence[Path], settings: Mapping[str, Any]) -> Part:
    """Read all parts of an evaluation of generated crystals.

    Args:
        folders: that `write_part` wrote to, in any order.
        settings: what they have to be computed with.

    Raises:
        UserError: if one of them is no such folder, is damaged or was computed with other settings,
            or if a part is missing or there twice.
    """
    return join_parts(_read_all(folders, settings, _part))


def write_compared(
    folder: Path, compared: Compared, number: int, count: int, settings: Mapping[str, Any]
) -> None:
    """Write comparisons of predicted structures; the files and arguments are as in `write_part`."""
    arrays = {
        "pairs": np.array(list(compared.rms), dtype=np.int64).reshape(-1, 2),
        "rms": np.array(list(compared.rms.values()), dtype=np.float64),
    }
    save_file(arrays, folder / "part.safetensors")
    content = {"number": number, "count": count, "settings": settings}
    write_json(folder / "part.json", content | {"timeouts": compared.timeouts})


def read_compared(folders: Sequence[Path], settings: Mapping[str, Any]) -> Compared:
    """Read all parts of comparisons of predicted structures; see `read_parts`."""
    return join_compared(_read_all(folders, settings, _compared))


def _read_all(
    folders: Sequence[Path],
    settings: Mapping[str, Any],
    parse: Callable[[Mapping[str, Any], Mapping[str, np.ndarray]], T],
) -> list[T]:
    found: dict[tuple[int, int], Path] = {}
    parts: list[T] = []
    for folder in folders:
        try:
            content = json.loads((folder / "part.json").read_text(encoding="utf-8"))
            key = content["number"], content["count"]
            differing = [k for k in settings if settings[k] != content["settings"].get(k)]
            part = parse(content, load_file(folder / "part.safetensors"))
        except OSError as error:
            raise UserError(
                f"{folder} is not the folder of a part ({error}): give those that were written "
                "with shard=NUMBER/COUNT"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise UserError(f"the part in {folder} is damaged ({error!r}): do it again") from error
        if differing:
            raise UserError(
                f"the part in {folder} was computed with another {' and another '.join(differing)}"
                ": merge with the same input and options, or do it again"
            )
        if key in found:
            raise UserError(f"{folder} and {found[key]} are the same part: give each once")
        found[key] = folder
        parts.append(part)
    counts = {count for _, count in found}
    if len(counts) > 1:
        raise UserError(f"merge has parts of {sorted(counts)}: all must be of the same number")
    missing = [n for n in range(1, max(counts, default=1) + 1) if n not in {n for n, _ in found}]
    if missing:
        raise UserError(f"merge lacks the parts {missing} of {max(counts, default=1)}")
    return parts


def _compared(content: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Compared:
    pairs = [(int(i), int(j)) for i, j in arrays["pairs"].tolist()]
    return Compared(dict(zip(pairs, arrays["rms"].tolist(), strict=True)), int(content["timeouts"]))


def _part(content: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Part:
    sets = {
        name: {**_fingerprints(name, arrays), **_by_index(content["failures"][name])}
        for name in _SETS
    }
    return Part(**sets, **{name: _by_index(content[name]) for name in _RESULTS})


def _fingerprints(name: str, arrays: Mapping[str, np.ndarray]) -> dict[int, Fingerprint]:
    from src.metrics.generation.fingerprints import Fingerprint

    indices = arrays[f"{name}.indices"].tolist()
    if not indices:
        return {}
    amd = arrays.get(f"{name}.amd", [None] * len(indices))
    columns = (arrays[f"{name}.structure"], arrays[f"{name}.composition"], amd)
    rows = zip(indices, *columns, strict=True)
    return {i: Fingerprint(*values) for i, *values in rows}


def _by_index(content: Mapping[str, Any]) -> dict[int, Any]:
    return {int(i): value for i, value in content.items()}
