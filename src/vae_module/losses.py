"""The terms of the loss, as plain functions of tensors."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from src.data.schema import CrystalBatch
from src.vae_module.decoders.transformer import Prediction
from src.vae_module.distribution import DiagonalGaussianDistribution

PER_CRYSTAL = frozenset({"lengths", "angles"})
"""Terms that are means over crystals; the others are means over atoms."""


COORDS_DELTA = 0.05
"""Distance on the unit circle from which on `frac_coords_loss` grows as the distance does."""


def frac_coords_loss(
    coords: Tensor, frac_coords: Tensor, delta: float | None = COORDS_DELTA
) -> Tensor:
    """Mean error of fractional coordinates, in the form in which they are predicted.

    For cosines and sines it is d, the distance to the point on the unit circle, which near the
    target is 2 pi times the error in the coordinate; smoothed to sqrt(d^2 + delta^2) - delta, the
    pseudo-Huber loss of Charbonnier et al. 1997, and averaged over atoms and directions. The
    gradient of a squared distance fades as d does, this one's only below delta.

    Args:
        coords: (N, 3, 2) cosines and sines, or (N, 3) raw coordinates, of which it is the mean
            squared error.
        frac_coords: (N, 3) the true ones.
        delta: of cosines and sines; None for the squared distance.
    """
    if coords.dim() == 2:
        return F.mse_loss(coords, frac_coords)
    phase = 2 * math.pi * frac_coords
    target = torch.stack([phase.cos(), phase.sin()], dim=-1)
    squared = (coords - target).square().sum(dim=-1)
    if delta is None:
        return squared.mean()
    return ((squared + delta**2).sqrt() - delta).mean()


def vae_loss(
    prediction: Prediction,
    posterior: DiagonalGaussianDistribution,
    batch: CrystalBatch,
    weights: Mapping[str, float],
    coords_delta: float | None = COORDS_DELTA,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted loss and its unweighted terms.

    The terms: `atom_types`, cross-entropy per atom (absent where types are not predicted);
    `lengths`, squared error of lengths_scaled (Å^2); `angles`, squared error (rad^2);
    `frac_coords`, see `frac_coords_loss`; `kl`, nats per atom, to the standard normal.

    Each is a mean over the atoms or crystals of the batch. Of a batch that is part of a larger
    one, it is the sum divided by the mean number per part, so that the mean of a term over the
    processes is its mean over the larger batch.

    Args:
        prediction: of the decoder.
        posterior: that the prediction was decoded from.
        batch: the true crystals.
        weights: of each term.
        coords_delta: see `frac_coords_loss`.

    Returns:
        The sum of weight times term, and the terms, each a scalar.
    """
    terms = {
        "lengths": F.mse_loss(prediction.lengths_scaled, batch.lengths_scaled),
        "angles": F.mse_loss(prediction.angles_radians, batch.angles_radians),
        "frac_coords": frac_coords_loss(prediction.coords, batch.frac_coords, coords_delta),
        "kl": posterior.kl().mean(),
    }
    if prediction.atom_logits is not None:
        terms["atom_types"] = F.cross_entropy(prediction.atom_logits, batch.atom_types)
    of_crystals = len(batch.num_atoms) / batch.part.mean_num_crystals
    of_atoms = len(batch.batch) / batch.part.mean_num_atoms
    terms = {
        name: term * (of_crystals if name in PER_CRYSTAL else of_atoms)
        for name, term in terms.items()
    }
    total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return total, terms
