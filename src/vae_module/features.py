"""Latents as features of crystals, for use in other models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from ase import Atoms
from pymatgen.core import Structure
from torch import Tensor

from src.data.dataset import CrystalDataset
from src.nn.transformer import segment_mean
from src.utils.errors import UserError
from src.utils.inference import inference
from src.vae_module.input import change_cells, choose_trained_cell, pack


@dataclass(frozen=True, slots=True)
class Features:
    """Latents of B crystals, on the CPU, in the order in which the crystals were given.

    Args:
        per_atom: B tensors (n, Z), the posterior means of the n given atoms, in their order. If
            the crystal was converted to another cell, each given atom gets the mean of the
            corresponding atom there. In a smaller cell, given atoms that are translations of each
            other share one; in a larger cell, the additional copies of an atom are left out.
        pooled: (B, Z), the posterior means averaged over all atoms of the cell that was encoded.
    """

    per_atom: list[Tensor]
    pooled: Tensor


def featurize(
    vae: Any,
    structures: Sequence[Structure] | Sequence[Atoms],
    batch_size: int = 256,
    cell: str | None = None,
) -> Features:
    """See `VAEModule.featurize`.

    Args:
        vae: a `VAEModule`, or an object with the same `encode`, `encoder` and `device`.
    """
    changes = change_cells(vae, structures, cell)
    for i, change in enumerate(changes):
        if change.atoms is None:
            raise UserError(
                f"structure {i}: the atoms of its {choose_trained_cell(vae, cell)} cell cannot be "
                "assigned to the given atoms: convert it to that cell and pass cell='as_given'"
            )
    dataset = CrystalDataset.from_batch(pack([change.chosen for change in changes]))
    per_atom: list[Tensor] = []
    pooled = []
    with inference(vae):
        for indices in torch.arange(len(dataset)).split(batch_size):
            batch = dataset.batch(indices).to(vae.device)
            mean = vae.encode(batch)["posterior"].mean
            pooled.append(segment_mean(mean, batch.batch, batch.num_atoms).cpu())
            per_atom += mean.cpu().split(batch.num_atoms.tolist())
    pairs = zip(per_atom, changes, strict=True)
    return Features([mean[change.atoms] for mean, change in pairs], torch.cat(pooled))
