"""Which crystals are solved for together on a CPU."""

import torch
from torch import Tensor

FEWEST_ATOMS = 1024  # that are worth a call of the denoiser of their own


def similar_sizes(num_atoms: Tensor, fewest: int = FEWEST_ATOMS) -> list[Tensor]:
    """Divide numbers of atoms into groups of neighboring ones.

    Crystals of one size need no padding, and without conditions they share the modulations of the
    denoiser. But a call for a few atoms takes almost as long as one for many.

    Args:
        num_atoms: (B,) of crystals.
        fewest: atoms in all crystals of a group, unless all crystals have fewer.

    Returns:
        The numbers of atoms in each group, ascending; each that occurs is in one of them.
    """
    sizes, counts = num_atoms.unique(return_counts=True)
    groups: list[list[int]] = []
    atoms = fewest
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        if atoms >= fewest:
            groups.append([])
            atoms = 0
        groups[-1].append(size)
        atoms += size * count
    if atoms < fewest and len(groups) > 1:
        rest = groups.pop()
        groups[-1] += rest
    return [torch.tensor(group, device=num_atoms.device) for group in groups]
