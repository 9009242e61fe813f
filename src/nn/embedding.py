"""Embeddings of geometric features and of atom indices."""

import math

import torch
from torch import Tensor, nn

from src.nn.rows import with_rounded_rows
from src.utils.precision import full_precision


class MLPEmbedding(nn.Sequential):
    """Linear, SiLU, linear: (..., num_features) to (..., d_model).

    The first layer always runs in full precision, even under autocast: half precision would round a
    length of 4 Å to 0.01 Å.
    """

    def __init__(self, num_features: int, d_model: int, bias: bool = True) -> None:
        super().__init__(
            nn.Linear(num_features, d_model, bias=bias), nn.SiLU(), nn.Linear(d_model, d_model)
        )

    def forward(self, features: Tensor) -> Tensor:
        with full_precision(features):
            hidden = self[1](self[0](features))
        return with_rounded_rows(self[2], hidden)


def fourier_features(frac_coords: Tensor, num_harmonics: int) -> Tensor:
    """Sines and cosines of the first harmonics of each coordinate, which are periodic in the cell.

    Args:
        frac_coords: (N, 3) fractional coordinates.
        num_harmonics: number of harmonics.

    Returns:
        (N, 6 * num_harmonics): sin(2 pi k x) and cos(2 pi k x), k = 1..num_harmonics.
    """
    harmonics = torch.arange(
        1, num_harmonics + 1, device=frac_coords.device, dtype=frac_coords.dtype
    )
    phases = (2 * math.pi * frac_coords[:, :, None] * harmonics).flatten(1)
    return torch.cat([phases.sin(), phases.cos()], dim=-1)


def sinusoidal_embedding(token_idx: Tensor, d_model: int, max_length: int = 2048) -> Tensor:
    """Sines, then cosines, of an index at d_model / 2 frequencies: pi / max_length^(2 k / d_model).

    This is the embedding of FrameDiff (Yim et al. 2023), which earlier crystal autoencoders use.

    Args:
        token_idx: (N,) int64 index of each atom in its crystal.
        d_model: width of the embedding.
        max_length: sets the lowest frequency.

    Returns:
        (N, d_model).
    """
    k = torch.arange(d_model // 2, device=token_idx.device)
    phase = token_idx[:, None] * (math.pi / max_length ** (2 * k / d_model))
    return torch.cat([phase.sin(), phase.cos()], dim=-1)
