"""Where the origin of a training crystal is, on which its latents depend."""

from collections.abc import Callable, Mapping

import torch

from src.data.augmentation import half_translation, random_translation
from src.data.schema import CrystalBatch


def as_given(batch: CrystalBatch, generator: torch.Generator | None = None) -> CrystalBatch:
    return batch


ORIGINS: Mapping[str, Callable[[CrystalBatch, torch.Generator | None], CrystalBatch]] = {
    "as_given": as_given,
    "half": half_translation,
    "random": random_translation,
}
"""Where its file has it, shifted from there by halves of lattice vectors at random, or anywhere."""
