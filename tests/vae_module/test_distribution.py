import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from src.vae_module import DiagonalGaussianDistribution


@pytest.fixture
def parameters() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(5, 6)


def test_moments_and_kl_agree_with_torch_distributions(parameters):
    posterior = DiagonalGaussianDistribution(parameters)
    mean, logvar = parameters.chunk(2, dim=-1)
    normal = Normal(mean, (0.5 * logvar).exp())
    torch.testing.assert_close(posterior.mean, normal.mean)
    torch.testing.assert_close(posterior.std, normal.stddev)
    torch.testing.assert_close(posterior.var, normal.variance)
    standard = Normal(torch.zeros(5, 3), torch.ones(5, 3))
    torch.testing.assert_close(posterior.kl(), kl_divergence(normal, standard).sum(-1))

    other_parameters = torch.randn(5, 6)
    other = DiagonalGaussianDistribution(other_parameters)
    other_normal = Normal(other.mean, other.std)
    torch.testing.assert_close(posterior.kl(other), kl_divergence(normal, other_normal).sum(-1))
    torch.testing.assert_close(posterior.kl(posterior), torch.zeros(5), rtol=0, atol=1e-6)


def test_samples_follow_the_distribution():
    parameters = torch.tensor([[1.0, -2.0, math.log(4.0), math.log(0.25)]]).expand(200_000, 4)
    generator = torch.Generator().manual_seed(0)
    z = DiagonalGaussianDistribution(parameters).sample(generator)
    torch.testing.assert_close(z.mean(0), torch.tensor([1.0, -2.0]), rtol=0, atol=0.02)
    torch.testing.assert_close(z.std(0), torch.tensor([2.0, 0.5]), rtol=0.01, atol=0)


def test_a_generator_makes_samples_reproducible(parameters):
    posterior = DiagonalGaussianDistribution(parameters)
    first, second = (posterior.sample(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, posterior.sample(torch.Generator().manual_seed(4)))


def test_logvar_is_clamped_and_gradients_reach_the_parameters():
    parameters = torch.tensor([[0.0, 0.0, -100.0, 100.0]], requires_grad=True)
    posterior = DiagonalGaussianDistribution(parameters)
    assert posterior.logvar.tolist() == [[-30.0, 20.0]]
    posterior.sample().sum().backward()
    assert parameters.grad[0, :2].tolist() == [1.0, 1.0]


def test_deterministic_has_no_variance(parameters):
    posterior = DiagonalGaussianDistribution(parameters, deterministic=True)
    assert torch.equal(posterior.sample(), posterior.mode())
    assert posterior.std.sum() == posterior.var.sum() == posterior.kl().sum() == 0


def test_half_precision_is_converted_to_float32(parameters):
    assert DiagonalGaussianDistribution(parameters.bfloat16()).kl().dtype == torch.float32


def test_odd_width_is_refused():
    with pytest.raises(ValueError, match="even"):
        DiagonalGaussianDistribution(torch.zeros(2, 5))
