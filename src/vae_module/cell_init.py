"""How networks start that take cells in or give them out.

A cell is six numbers of two kinds, none of them near zero. A network that starts as if they were
standardised need not learn first what all crystals share. It is the start alone: layers and
checkpoints are what they would be without it, and no statistics travel with them.
"""

import math

import torch
from torch import nn

from src.nn.embedding import MLPEmbedding

# of lengths_scaled (Å) and angles (radians): round numbers near those of the known data sets
MEAN = [2.5] * 3 + [math.pi / 2] * 3
SPREAD = [0.8] * 3 + [0.35] * 3


@torch.no_grad()
def start_from_standardized(embedder: MLPEmbedding) -> None:
    """Let a new embedding compute of cells what it did of standardised ones."""
    linear = embedder[0]
    assert isinstance(linear, nn.Linear)
    linear.weight.div_(linear.weight.new_tensor(SPREAD))
    linear.bias.sub_(linear.weight @ linear.weight.new_tensor(MEAN))


@torch.no_grad()
def start_at_typical(linear: nn.Linear) -> None:
    """Let a new layer that gives cells give typical ones."""
    linear.bias.copy_(linear.bias.new_tensor(MEAN))
