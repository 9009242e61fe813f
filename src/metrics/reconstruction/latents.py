"""What a latent space is like to build on: how much of it is used, and how smooth it is."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

ACTIVE_VARIANCE = 0.01
"""Variance of the posterior means above which a channel counts as active (Burda et al. 2016,
"Importance weighted autoencoders", section 5.2)."""


def latent_statistics(mean: Tensor, logvar: Tensor) -> dict[str, Any]:
    """Figures of the posteriors of many atoms.

    Args:
        mean, logvar: (N, latent_dim) of each atom's posterior.

    Returns:
        Per channel, as lists, `kl_per_channel` (nats per atom, to the standard normal), `mean` and
        `std` of the posterior means over atoms, `posterior_std` (root mean posterior variance);
        and `active_units`, the number of channels whose means vary by more than
        `ACTIVE_VARIANCE`.
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
    """Area under match rate against noise (trapezoids), divided by the range of the noise.

    1 for a latent whose every neighbour within that noise decodes to the same crystal.
    """
    x, y = (torch.tensor(values, dtype=torch.float64) for values in (levels, match_rates))
    return float(torch.trapezoid(y, x) / (x[-1] - x[0]))
