"""Measure how much of a latent space is used and how robust its decoder is to noise."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

ACTIVE_VARIANCE = 0.01
"""Variance of the posterior means above which a channel counts as active (Burda et al. 2016,
"Importance weighted autoencoders", section 5.2)."""


def latent_statistics(mean: Tensor, logvar: Tensor) -> dict[str, Any]:
    """Summarize the posteriors of many atoms.

    Args:
        mean, logvar: (N, latent_dim) parameters of each atom's posterior.

    Returns:
        Lists with a value per channel: `kl_per_channel` (nats per atom, to the standard normal),
        `mean` and `std` of the posterior means over the atoms, and `posterior_std` (square root of
        the mean posterior variance). And `active_units`, the number of channels whose posterior
        means have a variance above `ACTIVE_VARIANCE`.
    """
    mean, logvar = mean.double(), logvar.double()
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar)
    variance = mean.var(dim=0, correction=0)
    return {
        "active_units": int((variance > ACTIVE_VARIANCE).sum()),
        "kl_per_channel": kl.mean(dim=0).tolist(),
        "mean": mean.mean(dim=0).tolist(),
        "std": variance.sqrt().tolist(),
        "posterior_std": logvar.exp().mean(dim=0).sqrt().tolist(),
    }


def noise_area(levels: Sequence[float], match_rates: Sequence[float]) -> float:
    """Area under the curve of match rate against noise level, divided by the range of levels.

    The trapezoidal rule is used. The value is 1 if noise up to the highest level never causes a
    mismatch.
    """
    x, y = (torch.tensor(values, dtype=torch.float64) for values in (levels, match_rates))
    return float(torch.trapezoid(y, x) / (x[-1] - x[0]))
