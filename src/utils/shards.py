"""Divide work among jobs."""

import re

from src.utils.errors import UserError


def shard_of(shard: str | None, num_samples: int) -> tuple[range, str | None]:
    """The indices of one part of the samples, and its name, such as 03/16.

    Args:
        shard: the number of the part and of all parts, such as 3/16; None: all samples.
        num_samples: in all parts together.

    Raises:
        UserError: if there is no such part.
    """
    if shard is None:
        return range(num_samples), None
    found = re.fullmatch(r"(\d+)/(\d+)", str(shard).strip())
    number, parts = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= parts <= num_samples:
        raise UserError(
            f"shard={shard} is no part of {num_samples} samples: write shard=1/16 to shard=16/16 "
            "for sixteen parts"
        )
    return part_of(num_samples, number, parts), f"{number:0{len(str(parts))}d}/{parts}"


def part_of(size: int, number: int, parts: int) -> range:
    """The indices of one of several parts, equal but for one item: `number` is 1 to `parts`."""
    return range(size * (number - 1) // parts, size * number // parts)
