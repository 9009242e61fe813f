"""Embeddings that encoder and decoder share."""

import math

import torch
from torch import Tensor, nn


def mlp_embedding(num_features: int, d_model: int, bias: bool = True) -> nn.Sequential:
    """Linear, SiLU, linear: (..., num_features) to (..., d_model)."""
    return nn.Sequential(
        nn.Linear(num_features, d_model, bias=bias), nn.SiLU(), nn.Linear(d_model, d_model)
    )


def fourier_features(frac_coords: Tensor, num_harmonics: int) -> Tensor:
    """Sine and cosine of each coordinate's first harmonics, so that 0 and 1 are the same place.

    Args:
        frac_coords: (N, 3).

    Returns:
        (N, 6 * num_harmonics): sin(2 pi k x) and cos(2 pi k x), k = 1..num_harmonics.
    """
    harmonics = torch.arange(
        1, num_harmonics + 1, device=frac_coords.device, dtype=frac_coords.dtype
    )
    phases = (2 * math.pi * frac_coords[:, :, None] * harmonics).flatten(1)
    return torch.cat([phases.sin(), phases.cos()], dim=-1)


def sinusoidal_embedding(token_idx: Tensor, d_model: int) -> Tensor:
    """Embedding of an index (Vaswani et al. 2017, section 3.5): (N,) int64 to (N, d_model).

    Sines of all frequencies come first, then the cosines.
    """
    half = d_model // 2
    frequency = torch.exp(
        torch.arange(half, device=token_idx.device) * (-math.log(10_000.0) / half)
    )
    phase = token_idx[:, None] * frequency
    return torch.cat([phase.sin(), phase.cos()], dim=-1)
