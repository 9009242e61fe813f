"""The latent distribution: a diagonal Gaussian per atom."""

import torch
from torch import Tensor

LOGVAR_RANGE = (-30.0, 20.0)  # keeps exp() from causing overflow or underflow in float32


class DiagonalGaussianDistribution:
    """A Gaussian with diagonal covariance for each atom.

    Args:
        parameters: (N, 2 * latent_dim): means, then log-variances, which are clamped to
            [-30, 20].
        deterministic: set the variance to zero: samples equal the mean, and the KL divergence is
            zero.

    Raises:
        ValueError: if the last dimension of `parameters` is odd.
    """

    def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
        if parameters.shape[-1] % 2:
            raise ValueError(
                "parameters contain means and log-variances, so their last dimension must be even, "
                f"not {parameters.shape[-1]}"
            )
        mean, logvar = parameters.float().chunk(2, dim=-1)
        self.mean = mean
        self.logvar = logvar.clamp(*LOGVAR_RANGE)
        self.deterministic = deterministic

    @property
    def std(self) -> Tensor:
        """(N, latent_dim)."""
        return torch.zeros_like(self.mean) if self.deterministic else (0.5 * self.logvar).exp()

    @property
    def var(self) -> Tensor:
        """(N, latent_dim)."""
        return torch.zeros_like(self.mean) if self.deterministic else self.logvar.exp()

    def sample(
        self, generator: torch.Generator | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Draw one sample, differentiable in mean and standard deviation: (N, latent_dim).

        Args:
            generator: source of random numbers; None for torch's global one.
            noise: (N, latent_dim) standard normal numbers to use instead.
        """
        if noise is None:
            noise = torch.randn(
                self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype
            )
        return self.mean + self.std * noise

    def mode(self) -> Tensor:
        """The mean: (N, latent_dim)."""
        return self.mean

    def kl(self, other: "DiagonalGaussianDistribution | None" = None) -> Tensor:
        """Kullback-Leibler divergence to `other` or the standard normal, in nats per atom: (N,).

        This is the closed form for Gaussians (Kingma & Welling 2013, appendix B).
        """
        if self.deterministic:
            return self.mean.new_zeros(self.mean.shape[:-1])
        if other is None:
            terms = self.mean**2 + self.var - 1 - self.logvar
        else:
            squared = (self.mean - other.mean) ** 2
            terms = (squared + self.var) / other.var - 1 - self.logvar + other.logvar
        return 0.5 * terms.sum(dim=-1)
