"""Durations as people write them."""

import re
from datetime import timedelta
from typing import Any

from src.utils.errors import UserError

UNITS = {"d": "days", "h": "hours", "m": "minutes", "min": "minutes", "s": "seconds"}
UNITS |= {"sec": "seconds", "day": "days", "days": "days", "hour": "hours", "hours": "hours"}
UNITS |= {"minute": "minutes", "minutes": "minutes", "second": "seconds", "seconds": "seconds"}
PART = r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*"


def duration(value: Any, name: str) -> timedelta:
    """A duration from a number of seconds, `5min`, `1h30m`, HH:MM:SS or DD:HH:MM:SS.

    Args:
        value: a number, a string or a `timedelta`.
        name: of the setting, for messages.

    Raises:
        UserError: if it is none of these or negative.
    """
    if isinstance(value, timedelta):
        return value
    text = str(value).strip().lower()
    found = None
    if re.fullmatch(r"\d+(\.\d+)?", text) and not isinstance(value, bool):
        found = timedelta(seconds=float(text))
    elif re.fullmatch(r"(\d+:)?\d+:\d+:\d+", text):
        days, hours, minutes, seconds = map(int, f"0:{text}".split(":")[-4:])
        found = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    elif re.fullmatch(f"({PART})+", text):
        parts = re.findall(PART, text)
        if all(unit in UNITS for _, unit in parts):
            found = sum(
                (timedelta(**{UNITS[unit]: float(number)}) for number, unit in parts), timedelta()
            )
    if found is None:
        raise UserError(
            f"{name}={value} is not a time: write seconds, 5min, 1h30m, HH:MM:SS or DD:HH:MM:SS"
        )
    return found


def in_words(seconds: float) -> str:
    """A duration as one would say it, such as `40 seconds`, `8 minutes` or `2.5 hours`."""
    for unit, size, decimals in (("day", 86400, 1), ("hour", 3600, 1), ("minute", 60, 0)):
        if seconds >= 1.5 * size:
            number = f"{seconds / size:.{decimals}f}".removesuffix(".0")
            return f"{number} {unit}s"
    number = f"{max(seconds, 1):.0f}"
    return f"{number} second{'' if number == '1' else 's'}"
