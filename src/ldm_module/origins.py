"""Where the origin of a training crystal is, on which its latents depend."""

import math
import warnings
from collections.abc import Callable, Mapping
from functools import cache

import torch
from pymatgen.core import Element
from torch import Tensor

from src.data.augmentation import half_translation, random_translation
from src.data.schema import CrystalBatch

NEUTRAL = 2.2
"""A Pauling electronegativity between those of metals and nonmetals: hydrogen's."""
FAINTEST = 0.05
"""Smallest share of the atoms' weights that settles where the origin is."""


def as_given(batch: CrystalBatch, generator: torch.Generator | None = None) -> CrystalBatch:
    return batch


def canonical(batch: CrystalBatch, generator: torch.Generator | None = None) -> CrystalBatch:
    """Shift each crystal so that the same crystal has the same origin, wherever it was given.

    Along each lattice vector, the sum of w exp(2 pi i x) over all atoms becomes real and positive.
    The weight w is how much less electronegative than hydrogen an atom is. So cations are near the
    origin and anions far from it, alike in crystals of one structure type. An inversion center
    stays at the origin or half a lattice vector from it, so that atoms on special positions keep
    simple fractions as coordinates. Where the sum is almost 0, nothing is shifted.
    """
    weight = _weights().to(batch.frac_coords.device)[batch.atom_types, None]
    angle = 2 * math.pi * batch.frac_coords
    zero = batch.frac_coords.new_zeros(len(batch.num_atoms), 3)
    real = zero.index_add(0, batch.batch, weight * angle.cos())
    imaginary = zero.index_add(0, batch.batch, weight * angle.sin())
    total = zero.index_add(0, batch.batch, weight.abs().expand(-1, 3))
    shift = torch.atan2(imaginary, real) / (2 * math.pi)
    clear = torch.hypot(real, imaginary) > FAINTEST * total
    moved = batch.frac_coords - torch.where(clear, shift, 0)[batch.batch]
    return batch.replace(frac_coords=moved - moved.floor())


@cache
def _weights() -> Tensor:
    """(119,) by atomic number."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No Pauling electronegativity", UserWarning)
        known = [float(Element.from_Z(number).X) for number in range(1, 119)]
    weights = torch.tensor([NEUTRAL, *known])
    return NEUTRAL - torch.where(weights.isnan() | (weights == 0), NEUTRAL, weights)


ORIGINS: Mapping[str, Callable[[CrystalBatch, torch.Generator | None], CrystalBatch]] = {
    "as_given": as_given,
    "canonical": canonical,
    "half": half_translation,
    "random": random_translation,
}
"""Where its file has it, at a place that depends on the crystal alone, shifted from where its file
has it by halves of lattice vectors at random, or anywhere."""
