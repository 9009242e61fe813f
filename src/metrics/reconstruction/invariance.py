"""Other descriptions of the same crystals, to test that a model is invariant to the choice.

Batches and generators are on the host here.
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
    """The same crystals, described in another way.

    Attributes:
        batch: the crystals in the new description.
        undo: turns crystals with the layout of `batch` back into the original description.
    """

    batch: CrystalBatch
    undo: Callable[[CrystalBatch], CrystalBatch]


def translation(batch: CrystalBatch, generator: torch.Generator) -> TransformedBatch:
    """Another origin: each crystal moved by its own random fraction of the cell."""
    shift = torch.rand(len(batch.num_atoms), 3, generator=generator)[batch.batch]

    def by(crystals: CrystalBatch, sign: int) -> CrystalBatch:
        moved = crystals.frac_coords + sign * shift
        return crystals.replace(frac_coords=moved - moved.floor())

    return TransformedBatch(by(batch, 1), lambda crystals: by(crystals, -1))


def rotation(batch: CrystalBatch, generator: torch.Generator) -> TransformedBatch:
    """Another orientation. Lengths, angles and fractional coordinates do not tell it."""
    return TransformedBatch(random_rotation(batch, generator), lambda crystals: crystals)


def permutation(batch: CrystalBatch, generator: torch.Generator) -> TransformedBatch:
    """Another order of the atoms within each crystal."""
    key = batch.batch + torch.rand(len(batch.batch), generator=generator, dtype=torch.float64)
    order = key.argsort()
    back = order.argsort()

    def by(crystals: CrystalBatch, index: Tensor) -> CrystalBatch:
        return crystals.replace(
            atom_types=crystals.atom_types[index], frac_coords=crystals.frac_coords[index]
        )

    return TransformedBatch(by(batch, order), lambda crystals: by(crystals, back))


def cell(batch: CrystalBatch, generator: torch.Generator) -> TransformedBatch:
    """Another choice of cell of the same volume: one random cell vector plus another one."""
    num = len(batch.num_atoms)
    row = torch.randint(3, (num,), generator=generator)
    other = (row + 1 + torch.randint(2, (num,), generator=generator)) % 3
    shear = torch.zeros(num, 3, 3)
    shear[torch.arange(num), row, other] = 1
    identity = torch.eye(3)
    there, back = identity + shear, identity - shear

    def by(crystals: CrystalBatch, to: Tensor, inverse: Tensor) -> CrystalBatch:
        # rows: new lattice = to @ lattice, and x @ lattice = (x @ to^-1) @ (to @ lattice)
        coords = transform(crystals.frac_coords, inverse[crystals.batch])
        return crystals.replace(
            frac_coords=coords - coords.floor(), lattices=to @ crystals.lattices
        )

    return TransformedBatch(by(batch, there, back), lambda crystals: by(crystals, back, there))


@dataclass(frozen=True, slots=True)
class Transformation:
    """A kind of change of description.

    Attributes:
        changes: what it changes, in words.
        apply: makes the change, drawn at random for each crystal.
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
