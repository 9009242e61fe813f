"""Average loss terms over a whole split."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from src.data.schema import CrystalBatch


class LossAverages(Metric):
    """Means of the loss terms over the atoms or crystals of many batches.

    Unlike a mean of batch means, the result does not depend on how the crystals are distributed
    over batches and processes.

    Args:
        names: names of the terms.
        per_crystal: names of the terms that are averaged over crystals; the others are averaged
            over atoms.
    """

    full_state_update = False

    num_atoms: Tensor
    num_crystals: Tensor

    def __init__(self, names: Collection[str], per_crystal: Collection[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.per_crystal = frozenset(per_crystal)
        for name in self.names:
            self.add_state(f"sum_{name}", torch.tensor(0.0), dist_reduce_fx="sum")
        for name in ("num_atoms", "num_crystals"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, terms: Mapping[str, Tensor], batch: CrystalBatch) -> None:
        """Add the terms of a batch, scaled as `vae_loss` returns them."""
        for name, term in terms.items():
            is_per_crystal = name in self.per_crystal
            count = batch.part.mean_num_crystals if is_per_crystal else batch.part.mean_num_atoms
            state = f"sum_{name}"
            setattr(self, state, getattr(self, state) + term.detach() * count)
        self.num_atoms += len(batch.batch)
        self.num_crystals += len(batch.num_atoms)

    def compute(self) -> dict[str, Tensor]:
        return {
            name: getattr(self, f"sum_{name}")
            / (self.num_crystals if name in self.per_crystal else self.num_atoms)
            for name in self.names
        }
