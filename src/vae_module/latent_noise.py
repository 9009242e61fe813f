"""Noise on the latents in training, which teaches the decoder to tell atom types in spite of it."""

from collections.abc import Callable

import torch
from torch import Tensor

from src.data import augmentation as augment
from src.data.schema import CrystalBatch


def draw_noise_levels(
    batch: CrystalBatch, max_level: float, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """How much noise each crystal's latents get, and how much its geometry counts.

    Args:
        batch: B crystals.
        max_level: the largest level, in standard deviations of a latent channel; the levels of
            noisy crystals are uniform up to it.
        share: probability of a crystal to be noisy, in [0, 1).

    Returns:
        The levels (B,), 0 where there is no noise; and the weights (B,) of the crystals' geometry
        in the loss, 0 for noisy ones and 1 on average.
    """
    draw, level = augment.for_crystals(torch.rand, batch, 2, generator).unbind(dim=1)
    noisy = draw < share
    return max_level * level * noisy, ~noisy / (1 - share)


def channel_spread(mean: Tensor, all_gather: Callable[..., Tensor]) -> Tensor:
    """The standard deviation of each latent channel over the batch: (latent_dim,).

    Over all processes, so that it does not depend on how a batch is shared. Its gradient is kept:
    without it, larger latents would seem to escape the noise.

    Args:
        mean: (N, latent_dim) of the posteriors.
        all_gather: `LightningModule.all_gather`.
    """
    moments = torch.stack([torch.ones_like(mean), mean, mean**2]).sum(dim=1)
    gathered = all_gather(moments, sync_grads=True)
    count, first, second = gathered.view(-1, *moments.shape).sum(dim=0)
    return (second / count - (first / count) ** 2).clamp(min=1e-12).sqrt()
