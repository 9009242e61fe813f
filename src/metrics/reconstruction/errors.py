"""Accumulate per-atom and per-cell reconstruction errors over batches."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from src.data.schema import CrystalBatch
from src.utils.geometry import transform, wrapped_difference


class ReconstructionErrors(Metric):
    """Errors of predicted crystals, comparing atom k with atom k of the true crystal.

    `compute` returns a dict:

    - `atom_type_accuracy`: fraction of atoms with the correct type;
    - `frac_coords_rmse`: root mean square difference of fractional coordinates over atoms and
      axes, taken to the nearest periodic image;
    - `coords_rmsd`: root mean square distance in Å between the atoms and those images, in the true
      cell. It includes a shift of the whole crystal, which a structure matcher would remove;
    - `lengths_mae` (Å) and `angles_mae` (degrees): mean absolute errors of the cell;
    - `volume_mape`: mean absolute error of the cell volume, relative to the true volume.

    Args:
        kwargs: passed to `torchmetrics.Metric`.
    """

    full_state_update = False

    squared_frac: Tensor
    squared_cart: Tensor
    lengths: Tensor
    angles: Tensor
    volumes: Tensor
    correct_types: Tensor
    atoms: Tensor
    crystals: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # float32, because Apple GPUs do not support float64
        for name in ("squared_frac", "squared_cart", "lengths", "angles", "volumes"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")
        for name in ("correct_types", "atoms", "crystals"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predicted: CrystalBatch, target: CrystalBatch) -> None:
        """Add the errors of a batch; both batches have the same atoms in the same order."""
        difference = wrapped_difference(predicted.frac_coords, target.frac_coords)
        distance = transform(difference, target.lattices[target.batch])
        self.correct_types += (predicted.atom_types == target.atom_types).sum()
        self.squared_frac += (difference**2).sum()
        self.squared_cart += (distance**2).sum()
        self.lengths += (predicted.lengths - target.lengths).abs().sum()
        self.angles += (predicted.angles - target.angles).abs().sum()
        self.volumes += ((predicted.volumes - target.volumes).abs() / target.volumes).sum()
        self.atoms += len(target.atom_types)
        self.crystals += len(target.num_atoms)

    def compute(self) -> dict[str, Tensor]:
        return {
            "atom_type_accuracy": self.correct_types / self.atoms,
            "frac_coords_rmse": (self.squared_frac / (3 * self.atoms)).sqrt(),
            "coords_rmsd": (self.squared_cart / self.atoms).sqrt(),
            "lengths_mae": self.lengths / (3 * self.crystals),
            "angles_mae": self.angles / (3 * self.crystals),
            "volume_mape": self.volumes / self.crystals,
        }
