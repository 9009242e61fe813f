"""Compute the loss of the VAE and its terms."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from src.data.schema import CrystalBatch
from src.vae_module.decoders.transformer import Prediction
from src.vae_module.distribution import DiagonalGaussianDistribution

PER_CRYSTAL = frozenset({"lengths", "angles"})
"""Terms that are averaged over crystals; the others are averaged over atoms."""

COORDS_DELTA = 0.05
"""Distance to the point on the unit circle above which `frac_coords_loss` becomes linear."""
LENGTHS_DELTA = 0.5
"""Error of a scaled length in Å above which `lengths_loss` is linear instead of quadratic."""


def frac_coords_loss(
    coords: Tensor, frac_coords: Tensor, delta: float | None = COORDS_DELTA
) -> Tensor:
    """Loss of the fractional coordinates of each atom, averaged over the three axes.

    Coordinates predicted as cosines and sines have the loss sqrt(d^2 + delta^2) - delta, where d is
    the distance between the predicted point and the true point on the unit circle (near the target,
    d is 2 pi times the error of the coordinate). This is the pseudo-Huber loss (Charbonnier et al.
    1997). Unlike the squared distance, it has a gradient that becomes small only below delta.

    Raw coordinates have a squared error.

    Args:
        coords: (N, 3, 2) predicted cosines and sines, or (N, 3) predicted raw coordinates.
        frac_coords: (N, 3) true fractional coordinates.
        delta: for cosines and sines; None for the squared distance.

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
    """Loss of the cell lengths of each crystal: quadratic up to an error of delta, then linear.

    This is twice the Huber loss (Huber 1964). With a purely quadratic loss, a single crystal with
    an unusual cell could dominate a batch.

    Args:
        predicted, true: (B, 3) lengths_scaled, Å.
        delta: in Å; None for a purely quadratic loss.

    Returns:
        (B,) in Å^2, averaged over the three lengths.
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
    """Compute the weighted loss and its unweighted terms.

    The terms are `atom_types`, the cross-entropy per atom (absent if the decoder does not predict
    atom types); `lengths`, see `lengths_loss`; `angles`, the squared error in rad^2; `frac_coords`,
    see `frac_coords_loss`; and `kl`, the KL divergence to the standard normal in nats per atom.

    Each term is a mean over the atoms or crystals of the batch. If several processes share a batch,
    each process divides its sum by the mean number of atoms or crystals per process, so that the
    mean over the processes is the mean over the whole batch.

    Args:
        prediction: output of the decoder.
        posterior: the posterior that the prediction was decoded from.
        batch: the true crystals.
        weights: the weight of each term.
        coords_delta: see `frac_coords_loss`.
        lengths_delta: see `lengths_loss`.
        geometry_weights: (B,) weights of the crystals in `lengths`, `angles` and `frac_coords`;
            None for 1.

    Returns:
        The weighted sum of the terms, and the terms; all are scalars.
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
    crystal_scale = len(batch.num_atoms) / batch.part.mean_num_crystals
    atom_scale = len(batch.batch) / batch.part.mean_num_atoms
    terms = {
        name: term * (crystal_scale if name in PER_CRYSTAL else atom_scale)
        for name, term in terms.items()
    }
    total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return total, terms
