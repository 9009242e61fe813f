"""Check the noise levels of crystals and the spread of latent channels."""

import pytest
import torch

from src.data.schema import CrystalBatch
from src.vae_module.latent_noise import channel_spread, draw_noise_levels


def alone(moments: torch.Tensor, sync_grads: bool) -> torch.Tensor:
    """What `LightningModule.all_gather` does in a single process."""
    return moments


def test_a_share_of_the_crystals_has_noise_and_no_geometry():
    batch = CrystalBatch.for_sampling(torch.tensor([1, 4, 9]))
    drawn = [
        draw_noise_levels(batch, 0.2, 0.25, torch.Generator().manual_seed(seed))
        for seed in range(4000)
    ]
    level, geometry_weights = (torch.stack(part) for part in zip(*drawn, strict=True))
    has_noise = level > 0
    assert has_noise.float().mean().item() == pytest.approx(0.25, rel=0.05)
    assert torch.equal(geometry_weights, torch.where(has_noise, 0, 1 / 0.75))
    # uniformly distributed up to the largest level
    assert level[has_noise].mean().item() == pytest.approx(0.1, rel=0.05)
    assert 0.195 < level.max() < 0.2


def test_the_spread_is_the_standard_deviation_over_all_processes():
    mean = 7 + torch.randn(20, 5) * torch.tensor([1.0, 2, 3, 4, 5])
    torch.testing.assert_close(channel_spread(mean, alone), mean.std(dim=0, correction=0))
    first, second = mean[:6], mean[6:]

    def together(moments: torch.Tensor, sync_grads: bool) -> torch.Tensor:
        assert sync_grads
        other = torch.stack([torch.ones_like(second), second, second**2]).sum(dim=1)
        return torch.stack([moments, other])

    torch.testing.assert_close(channel_spread(first, together), mean.std(dim=0, correction=0))


def test_larger_latents_do_not_escape_the_noise():
    """The spread grows with the latents, and so does its gradient."""
    scale = torch.ones((), requires_grad=True)
    spread = channel_spread(scale * torch.randn(14, 5), alone)
    spread.sum().backward()
    assert scale.grad.item() == pytest.approx(spread.sum().item(), rel=1e-4)
