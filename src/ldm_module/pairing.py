"""Which noise each atom of a training crystal starts from."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from src.data.schema import CrystalBatch


def as_drawn(x_1: Tensor, noise: Tensor, batch: CrystalBatch, atom_type_input: bool) -> Tensor:
    return noise


def nearest(x_1: Tensor, noise: Tensor, batch: CrystalBatch, atom_type_input: bool) -> Tensor:
    """Permute the noise within each crystal so that it is as near to the latents as possible.

    Atoms have no order, so any permutation of their noise is a way to make the same crystal, and
    samples can start from noise as it is drawn. With the shortest paths, few of them cross: what
    becomes of an atom is decided early, and two atoms seldom end on one site (Klein et al. 2023,
    "Equivariant flow matching").

    Args:
        x_1: (N, Z) normalized latents.
        noise: (N, Z) standard normal.
        batch: the crystals.
        atom_type_input: whether the denoiser is given atom types. If it is, noise is permuted
            only among atoms of one type, since a sample has noise that does not depend on
            the types.

    Returns:
        (N, Z). It is computed on the CPU.
    """
    latents, drawn = (values.detach().float().cpu().numpy() for values in (x_1, noise))
    types = batch.atom_types.cpu().numpy() if atom_type_input else np.zeros(len(drawn))
    order = np.empty(len(drawn), dtype=np.int64)
    ends = batch.num_atoms.cumsum(0).tolist()
    for start, end in zip([0, *ends], ends, strict=False):
        # squared distances, up to sums that are the same for all permutations
        costs = -latents[start:end] @ drawn[start:end].T
        costs[types[start:end, None] != types[start:end]] = np.inf
        order[start:end] = start + linear_sum_assignment(costs)[1]
    return noise[torch.from_numpy(order).to(noise.device)]


PAIRINGS: Mapping[str, Callable[[Tensor, Tensor, CrystalBatch, bool], Tensor]] = {
    "as_drawn": as_drawn,
    "nearest": nearest,
}
"""Noise as it is drawn, or permuted within each crystal to be near its latents."""
