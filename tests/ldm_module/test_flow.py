"""The path, what the network sees of it, and the loss."""

import pytest
import torch

from src.ldm_module.flow import denoising_loss, draw_times, interpolate, precondition


def test_the_path_leads_from_noise_to_latents():
    x_1, noise = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(interpolate(x_1, noise, torch.zeros(5, 1)), noise)
    assert torch.equal(interpolate(x_1, noise, torch.ones(5, 1)), x_1)
    torch.testing.assert_close(
        interpolate(x_1, noise, torch.full((5, 1), 0.25)), 0.25 * x_1 + 0.75 * noise
    )


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_the_network_has_inputs_and_targets_of_unit_variance(t):
    """And they are uncorrelated, so that its best constant answer is zero."""
    x_1, noise = torch.randn(2, 100_000, 1, generator=torch.Generator().manual_seed(0)).double()
    t = torch.tensor([[t]], dtype=torch.float64)
    skip, out, scale = precondition(t)
    x_t = interpolate(x_1, noise, t)
    target = (x_1 - skip * x_t) / out
    assert (scale * x_t).std().item() == pytest.approx(1, abs=0.01)
    assert target.std().item() == pytest.approx(1, abs=0.01)
    assert (target * x_t).mean().item() == pytest.approx(0, abs=0.01)


def test_the_loss_is_that_of_the_network():
    x_1, predicted, x_t = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.05, 0.95, 6)[:, None]
    skip, out, _ = precondition(t)
    network, target = (predicted - skip * x_t) / out, (x_1 - skip * x_t) / out
    loss, squared = denoising_loss(predicted, x_1, t)
    torch.testing.assert_close(loss, ((network - target) ** 2).mean(1))
    torch.testing.assert_close(squared, ((predicted - x_1) ** 2).mean(1))


def test_times():
    uniform = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    t = draw_times(uniform, mean=0.5, std=1.2)
    assert ((t > 0) & (t < 1)).all()
    assert torch.logit(t).mean().item() == pytest.approx(0.5, abs=0.02)
    assert torch.logit(t).std().item() == pytest.approx(1.2, abs=0.02)
    ends = draw_times(torch.tensor([0.0, 1.0]), mean=0.0, std=1.0)
    assert ((ends > 0) & (ends < 1)).all()
