"""Solve the flow from noise to latents."""

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
"""Predicts x_1 (N, Z) from x_t (N, Z) and the time."""


def time_grid(num_steps: int, shift: float = 1.0) -> list[float]:
    """The times at which the denoiser is called, from 0, and 1 at the end: `num_steps` + 1 of them.

    Args:
        num_steps: at least 1.
        shift: 1: equal steps. Above 1: smaller steps near the end, where positions are settled;
            below 1: smaller ones near the beginning (Esser et al. 2024, equation 23).
    """
    equal = [step / num_steps for step in range(num_steps + 1)]
    return [t * shift / (1 + (shift - 1) * t) for t in equal]


def solve(denoise: Denoise, noise: Tensor, num_steps: int, shift: float = 1.0) -> Tensor:
    """Follow the flow from noise at time 0 to latents at time 1, in Euler steps.

    The velocity at time t is (x_1 - x_t) / (1 - t) with the predicted x_1, so the last step ends at
    the last prediction.

    Args:
        denoise: see `Denoise`.
        noise: (N, Z).
        num_steps: steps, each of which calls `denoise` once.
        shift: see `time_grid`.

    Returns:
        (N, Z).
    """
    x = noise
    for t, t_next in pairwise(time_grid(num_steps, shift)):
        predicted = denoise(x, t)
        x = predicted if t_next == 1 else x + (t_next - t) / (1 - t) * (predicted - x)
    return x
