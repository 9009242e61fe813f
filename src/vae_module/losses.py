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
LENGTHS_DELTA = 0.5
"""Å: error of a scaled length from which on `lengths_loss` grows as the error does."""


def frac_coords_loss(
    coords: Tensor, frac_coords: Tensor, delta: float | None = COORDS_DELTA
) -> Tensor:
    """Error of each atom's fractional coordinates, in the form in which they are predicted.

    For cosines and sines it is d, the distance to the point on the unit circle, which near the
    target is 2 pi times the error in the coordinate; smoothed to sqrt(d^2 + delta^2) - delta, the
    pseudo-Huber loss of Charbonnier et al. 1997, and averaged over directions. The gradient of a
    squared distance fades as d does, this one's only below delta.

    Args:
        coords: (N, 3, 2) cosines and sines, or (N, 3) raw coordinates, of which it is the
            squared error.
        frac_coords: (N, 3) the true ones.
        delta: of cosines and sines; None for the squared distance.

    Returns:
        (N,).
    """
    if coords.dim() == 2:
        return (coords - frac_coords).square().mean(dim=1)
    phase = 2 * math.pi * frac_coords
    target = torch.stack([phase.cos(), phase.sin()], dim=-1)
    squared = (coords - target).square().sum(dim=-1)
    if delta is None:
        return squared.mean(dim=1)
    return ((squared + delta**2).sqrt() - delta).mean(dim=1)


def lengths_loss(predicted: Tensor, true: Tensor, delta: float | None = LENGTHS_DELTA) -> Tensor:
    """Squared error of each crystal's lengths, and further off than delta its tangent there.

    Twice the loss of Huber 1964. Squared, the lengths of one crystal with an odd cell would
    outweigh those of all others.

    Args:
        predicted, true: (B, 3) lengths_scaled, Å.
        delta: Å; None for the squared error of all.

    Returns:
        (B,), means over the three lengths, Å^2.
    """
    if delta is None:
        return (predicted - true).square().mean(dim=1)
    return 2 * F.huber_loss(predicted, true, reduction="none", delta=delta).mean(dim=1)


def vae_loss(
    prediction: Prediction,
    posterior: DiagonalGaussianDistribution,
    batch: CrystalBatch,
    weights: Mapping[str, float],
    coords_delta: float | None = COORDS_DELTA,
    lengths_delta: float | None = LENGTHS_DELTA,
    geometry_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted loss and its unweighted terms.

    The terms: `atom_types`, cross-entropy per atom (absent where types are not predicted);
    `lengths`, see `lengths_loss`; `angles`, squared error (rad^2);
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
        lengths_delta: see `lengths_loss`.
        geometry_weights: (B,) of the crystals in `lengths`, `angles` and `frac_coords`; None: 1.

    Returns:
        The sum of weight times term, and the terms, each a scalar.
    """
    lengths = lengths_loss(prediction.lengths_scaled, batch.lengths_scaled, lengths_delta)
    angles = (prediction.angles_radians - batch.angles_radians).square().mean(dim=1)
    coords = frac_coords_loss(prediction.coords, batch.frac_coords, coords_delta)
    if geometry_weights is not None:
        lengths, angles = geometry_weights * lengths, geometry_weights * angles
        coords = geometry_weights[batch.batch] * coords
    terms = {
        "lengths": lengths.mean(),
        "angles": angles.mean(),
        "frac_coords": coords.mean(),
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
