"""JSON that any program reads: it has no NaN and no infinities, which Python's own writes."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def json_ready(value: Any) -> Any:
    """`value` as plain Python types, with None in the place of NaN and infinities."""
    if isinstance(value, Mapping):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return json_ready(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def not_finite(value: Any, name: str = "") -> list[str]:
    """The dotted names of all NaN and infinities in nested dicts and lists called `name`."""
    if isinstance(value, (Mapping, list, tuple)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        prefix = f"{name}." if name else ""
        return [found for key, item in items for found in not_finite(item, f"{prefix}{key}")]
    return [name] if isinstance(value, float) and not math.isfinite(value) else []


def json_text(content: Any, indent: int | None = 2) -> str:
    """The text of JSON; figures that are not finite are null.

    Raises:
        TypeError: for what JSON has no type for.
    """
    return json.dumps(json_ready(content), indent=indent, allow_nan=False)


def write_json(path: str | Path, content: Any) -> None:
    """Write `json_text` to a file, which ends with a newline."""
    Path(path).write_text(json_text(content) + "\n", encoding="utf-8")
