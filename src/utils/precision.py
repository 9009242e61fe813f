"""Keep parts of a network in full precision under mixed precision."""

import torch
from torch import Tensor


def full_precision(x: Tensor) -> torch.autocast:
    """A context that disables autocast on the device of `x`."""
    return torch.autocast(x.device.type, enabled=False)
