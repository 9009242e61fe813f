"""Initialize layers whose inputs or outputs are cells, as if the cells were standardized.

The six cell parameters have two different units and none are close to zero. With this
initialization, a network does not first have to learn the mean and spread that all crystals share.
It only changes the initial weights: layers and checkpoints have the same form as without it, and
no statistics need to be stored.
"""

import math

import torch
from torch import nn

from src.nn.embedding import MLPEmbedding

# statistics of lengths_scaled (Å) and angles (radians), rounded values from common data sets
MEAN = [2.5] * 3 + [math.pi / 2] * 3
SPREAD = [0.8] * 3 + [0.35] * 3


@torch.no_grad()
def init_cell_input(embedder: MLPEmbedding) -> None:
    """Make a new embedding treat cells as if they were standardized."""
    linear = embedder[0]
    assert isinstance(linear, nn.Linear)
    linear.weight.div_(linear.weight.new_tensor(SPREAD))
    linear.bias.sub_(linear.weight @ linear.weight.new_tensor(MEAN))


@torch.no_grad()
def init_cell_output(linear: nn.Linear) -> None:
    """Make a new layer that predicts cells start from a typical cell."""
    linear.bias.copy_(linear.bias.new_tensor(MEAN))
