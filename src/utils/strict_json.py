"""JSON that any program can read: without NaN and infinities, which Python's `json` writes."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def json_ready(value: Any) -> Any:
    """`value` as plain Python types, with None instead of NaN and infinities."""
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
    """Serialize to JSON; numbers that are not finite become null.

    Raises:
        TypeError: for a value that JSON cannot represent.
    """
    return json.dumps(json_ready(content), indent=indent, allow_nan=False)


def write_json(path: str | Path, content: Any) -> None:
    """Write `json_text` and a final newline to a file."""
    Path(path).write_text(json_text(content) + "\n", encoding="utf-8")
