"""Draw noise for the latents in training, so that the decoder learns robust atom types."""

from collections.abc import Callable

import torch
from torch import Tensor

from src.data import augmentation as augment
from src.data.schema import CrystalBatch


def add_noise(
    x: Tensor,
    mean: Tensor,
    batch: CrystalBatch,
    max_level: float,
    share: float,
    all_gather: Callable[..., Tensor],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Add noise to the latents of some crystals.

    Args:
        x: (N, latent_dim) latents.
        mean: (N, latent_dim) posterior means, whose spread is the unit of the noise.
        batch, max_level, share, generator: see `draw_noise_levels`.
        all_gather: see `channel_spread`.

    Returns:
        The latents (N, latent_dim) with noise, and the weights (B,) of the geometry terms.
    """
    level, geometry_weights = draw_noise_levels(batch, max_level, share, generator)
    spread = channel_spread(mean, all_gather)
    noise = augment.draw_per_atom(torch.randn, batch, x.shape[1], generator)
    return x + level[batch.batch, None] * spread * noise, geometry_weights


def draw_noise_levels(
    batch: CrystalBatch, max_level: float, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw the noise level of each crystal and the weight of its geometry in the loss.

    Args:
        batch: B crystals.
        max_level: the largest level, in standard deviations of each latent channel. The levels of
            noisy crystals are uniformly distributed up to it.
        share: probability that a crystal gets noise, in [0, 1).
        generator: source of random numbers.

    Returns:
        The noise levels (B,), 0 for crystals without noise, and the weights (B,) of the geometry
        terms in the loss, which are 0 for noisy crystals and 1 on average.
    """
    draw, level = augment.draw_per_crystal(torch.rand, batch, 2, generator).unbind(dim=1)
    noisy = draw < share
    return max_level * level * noisy, ~noisy / (1 - share)


def channel_spread(mean: Tensor, all_gather: Callable[..., Tensor]) -> Tensor:
    """The standard deviation of each latent channel over the batch: (latent_dim,).

    It is computed over all processes, so that it does not depend on how they share a batch. The
    gradient is kept; otherwise scaling up the latents would reduce the effect of the noise.

    Args:
        mean: (N, latent_dim) posterior means.
        all_gather: `LightningModule.all_gather`.
    """
    moments = torch.stack([torch.ones_like(mean), mean, mean**2]).sum(dim=1)
    gathered = all_gather(moments, sync_grads=True)
    count, first, second = gathered.view(-1, *moments.shape).sum(dim=0)
    return (second / count - (first / count) ** 2).clamp(min=1e-12).sqrt()
