"""Compare latent statistics with torch.distributions and values computed by hand."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from src.metrics.reconstruction.latents import ACTIVE_VARIANCE, latent_statistics, noise_area


def make_posteriors(num: int = 200, dim: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(num, dim, generator=generator) * torch.tensor([3.0, 1, 0.5, 0.01, 0])
    return mean, torch.randn(num, dim, generator=generator) - 2


def test_kl_per_channel_agrees_with_torch():
    mean, logvar = make_posteriors()
    posterior = Normal(mean.double(), logvar.double().exp().sqrt())
    prior = Normal(torch.zeros(5).double(), torch.ones(5).double())
    found = latent_statistics(mean, logvar)["kl_per_channel"]
    assert found == pytest.approx(kl_divergence(posterior, prior).mean(0).tolist(), rel=1e-9)
    whole = kl_divergence(Independent(posterior, 1), Independent(prior.expand((200, 5)), 1))
    assert sum(found) == pytest.approx(float(whole.mean()), rel=1e-9)


def test_the_prior_itself_has_no_kl():
    found = latent_statistics(torch.zeros(7, 3), torch.zeros(7, 3))
    assert found["kl_per_channel"] == [0, 0, 0]
    assert found["active_units"] == 0
    assert found["posterior_std"] == [1, 1, 1]


def test_moments_by_hand():
    mean = torch.tensor([[1.0, -2], [3, -2], [5, -2], [7, -2]])
    logvar = torch.tensor([[0.0, math.log(4)], [0, math.log(4)], [0, math.log(16)], [0, 0]])
    found = latent_statistics(mean, logvar)
    assert found["mean"] == [4, -2]
    assert found["std"] == pytest.approx([math.sqrt(5), 0])  # divided by N, not N - 1
    assert found["posterior_std"] == pytest.approx([1, math.sqrt((4 + 4 + 16 + 1) / 4)])


def test_a_channel_is_active_if_its_means_vary():
    """Means of +-s have variance s^2; a constant mean is inactive, whatever its value."""
    sign = torch.tensor([1.0, -1] * 50)[:, None]
    edge = math.sqrt(ACTIVE_VARIANCE)
    mean = sign * torch.tensor([2.0, 1.01 * edge, 0.99 * edge, 0.0]) + torch.tensor([0, 9.0, 9, 9])
    found = latent_statistics(mean, torch.zeros(100, 4))
    assert found["active_units"] == 2
    assert ACTIVE_VARIANCE == 0.01


def test_large_offsets_do_not_hide_small_variance():
    sign = torch.tensor([1.0, -1] * 50)[:, None]
    found = latent_statistics(1000 + 0.25 * sign, torch.zeros(100, 1))
    assert found["std"] == pytest.approx([0.25])


def test_nan_latents_are_not_active():
    found = latent_statistics(torch.full((4, 2), math.nan), torch.zeros(4, 2))
    assert found["active_units"] == 0
    assert all(math.isnan(value) for value in found["kl_per_channel"])


@pytest.mark.parametrize(
    ("levels", "rates", "area"),
    [
        ([0, 1], [1, 1], 1),
        ([0, 1], [1, 0], 1 / 2),
        ([0, 0.5, 1], [1, 1, 0], 3 / 4),
        ([0, 0.5, 2], [1, 0, 0], 0.25 / 2),  # a triangle, divided by a range of two
        ([0, 0.05, 0.1, 0.2, 0.5, 1.0], [1, 0, 0, 0, 0, 0], 0.025),
        ([0, 0.1, 0.4], [0.8, 0.8, 0.8], 0.8),  # constant, at uneven steps
    ],
)
def test_the_area_under_known_curves(levels, rates, area):
    assert noise_area(levels, rates) == pytest.approx(area)


def test_the_area_of_a_straight_line_is_exact_on_any_levels():
    levels = [0, 0.03, 0.2, 0.21, 0.9]
    assert noise_area(levels, [1 - level for level in levels]) == pytest.approx(1 - 0.45)
