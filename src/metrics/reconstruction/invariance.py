"""Describe the same crystals differently, to test whether a model is invariant to the description.

Batches and generators have to be on the CPU.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from src.data.augmentation import random_rotation
from src.data.schema import CrystalBatch
from src.utils.geometry import transform


@dataclass(frozen=True, slots=True)
class TransformedBatch:
    """The same crystals in a different description.

    Attributes:
        batch: the crystals in the new description.
        undo: transforms crystals in the new description (such as reconstructions of `batch`) back
            to the original one.
    """

    batch: CrystalBatch
    undo: Callable[[CrystalBatch], CrystalBatch]


def translation(batch: CrystalBatch, generator: torch.Generator) -> TransformedBatch:
    """Change the origin: shift each crystal by a random fraction of its cell."""
    shift = torch.rand(len(batch.num_atoms), 3, generator=generator)[batch.batch]

    def by(crystals: CrystalBatch, sign: int) -> CrystalBatch:
        moved = crystals.frac_coords + sign * shift
        return crystals.replace(frac_coords=moved - moved.floor())

    return TransformedBatch(by(batch, 1), lambda crystals: by(crystals, -1))


def rotation(batch: CrystalBatch, generator: torch.Generator) -> TransformedBatch:
    """Rotate the cells. Lengths, angles and fractional coordinates do not change."""
    return TransformedBatch(random_rotation(batch, generator), lambda crystals: crystals)


def permutation(batch: CrystalBatch, generator: torch.Generator) -> TransformedBatch:
    """Shuffle the atoms within each crystal."""
    key = batch.batch + torch.rand(len(batch.batch), generator=generator, dtype=torch.float64)
    order = key.argsort()
    back = order.argsort()

    def by(crystals: CrystalBatch, index: Tensor) -> CrystalBatch:
        return crystals.replace(
            atom_types=crystals.atom_types[index], frac_coords=crystals.frac_coords[index]
        )

    return TransformedBatch(by(batch, order), lambda crystals: by(crystals, back))


def cell(batch: CrystalBatch, generator: torch.Generator) -> TransformedBatch:
    """Choose another cell of the same volume: add one random cell vector to another."""
    num = len(batch.num_atoms)
    row = torch.randint(3, (num,), generator=generator)
    other = (row + 1 + torch.randint(2, (num,), generator=generator)) % 3
    shear = torch.zeros(num, 3, 3)
    shear[torch.arange(num), row, other] = 1
    identity = torch.eye(3)
    forward, backward = identity + shear, identity - shear

    def by(crystals: CrystalBatch, to: Tensor, inverse: Tensor) -> CrystalBatch:
        # row vectors: new lattice = to @ lattice, so x @ lattice = (x @ to^-1) @ (to @ lattice)
        coords = transform(crystals.frac_coords, inverse[crystals.batch])
        return crystals.replace(
            frac_coords=coords - coords.floor(), lattices=to @ crystals.lattices
        )

    return TransformedBatch(
        by(batch, forward, backward), lambda crystals: by(crystals, backward, forward)
    )


@dataclass(frozen=True, slots=True)
class Transformation:
    """A random change of the description of a crystal.

    Attributes:
        changes: what it changes, in words.
        apply: applies the change, drawn at random for each crystal.
    """

    changes: str
    apply: Callable[[CrystalBatch, torch.Generator], TransformedBatch]

    def __call__(self, batch: CrystalBatch, generator: torch.Generator) -> TransformedBatch:
        return self.apply(batch, generator)


TRANSFORMATIONS = {
    "translation": Transformation("origin", translation),
    "rotation": Transformation("orientation", rotation),
    "permutation": Transformation("order of atoms", permutation),
    "cell": Transformation("choice of cell", cell),
}
