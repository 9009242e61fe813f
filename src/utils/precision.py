"""Where numbers must stay precise under mixed precision."""

import torch
from torch import Tensor


def full_precision(x: Tensor) -> torch.autocast:
    """A context in which operations on the device of `x` are not autocast."""
    return torch.autocast(x.device.type, enabled=False)
