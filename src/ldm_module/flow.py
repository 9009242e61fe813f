"""The path from noise to latents that the denoiser learns to follow, and its loss.

At time t in [0, 1] a latent is x_t = t x_1 + (1 - t) noise, where x_1 is the latent of a crystal,
normalized to mean 0 and variance 1 in each channel (Lipman et al. 2023, "Flow Matching for
Generative Modeling"). The denoiser predicts x_1 from x_t.
"""

import torch
from torch import Tensor


def interpolate(x_1: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Latents at time `t`.

    Args:
        x_1: (N, Z) normalized latents.
        noise: (N, Z) standard normal.
        t: (N, 1) in [0, 1].

    Returns:
        (N, Z).
    """
    return t * x_1 + (1 - t) * noise


def precondition(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factors that give the network inputs and targets of unit variance at every time.

    The prediction is x_1 = skip * x_t + out * network(scale * x_t). Near t = 1, x_t is almost x_1
    and `out` is small, so that the rounding errors of a network in half precision do not limit how
    exact the latents get (Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based
    Generative Models", table 1, with a data variance of 1).

    Args:
        t: any shape, in [0, 1].

    Returns:
        skip, out and scale, each of the shape of `t`.
    """
    variance = t**2 + (1 - t) ** 2  # of x_t
    return t / variance, (1 - t) / variance.sqrt(), variance.rsqrt()


def draw_times(uniform: Tensor, mean: float, std: float) -> Tensor:
    """Times whose logit is normally distributed (Esser et al. 2024, "Scaling Rectified Flow").

    Args:
        uniform: uniformly distributed in [0, 1), any shape.
        mean, std: of the logit: log(t / (1 - t)) is the log of the ratio of signal to noise.

    Returns:
        Times in (0, 1), of the same shape.
    """
    inside = uniform.clamp(1e-6, 1 - 1e-6)
    return torch.sigmoid(mean + std * torch.special.ndtri(inside))


def denoising_loss(predicted: Tensor, x_1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Squared errors of predicted latents, weighted so that all times count equally.

    The weight is one over the square of `out` in `precondition`, which makes this the squared error
    of what the network itself puts out.

    Args:
        predicted, x_1: (N, Z).
        t: (N, 1), below 1.

    Returns:
        The weighted and the plain squared error of each atom, averaged over channels: (N,) each.
    """
    squared = ((predicted - x_1) ** 2).mean(dim=1)
    out = precondition(t)[1].squeeze(1)
    return squared / out**2, squared
