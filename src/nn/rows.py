"""Round the number of rows of a matrix up, so that few different shapes are multiplied."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

MULTIPLE = 64


def num_spare_rows(x: Tensor) -> int:
    """How many rows to add to `x` (N, ...) for products in half precision on a CPU, else 0.

    There, PyTorch generates machine code for each new shape of a product, which takes as long as
    several products of 700 rows. Batches differ in their number of atoms, in training as well as
    when crystals are drawn again. Rounded up to a multiple of 64, it takes a few values.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return 0
    return -len(x) % MULTIPLE if torch.is_autocast_enabled("cpu") else 0


def add_rows(x: Tensor, number: int) -> Tensor:
    """`x` (N, D) with `number` rows of zeros at the end: (N + number, D)."""
    return F.pad(x, (0, 0, 0, number)) if number else x


def drop_rows(x: Tensor, number: int) -> Tensor:
    """`x` (N + number, D) without the rows at the end: (N, D)."""
    return x[:-number] if number else x


def with_rounded_rows(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`network` of `x` (N, D), of which it treats each row alone: (N, ...)."""
    spare = num_spare_rows(x)
    return drop_rows(network(add_rows(x, spare)), spare)
