"""Latents as features of crystals, for other models than ours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from ase import Atoms
from ase.data import chemical_symbols
from pymatgen.core import Structure
from torch import Tensor

from src.data.dataset import CrystalDataset
from src.data.schema import CrystalBatch
from src.nn.transformer import segment_mean
from src.utils.inference import inference


@dataclass(frozen=True, slots=True)
class Features:
    """Latents of B crystals, on the CPU, in the order in which the crystals were given.

    Args:
        per_atom: B tensors (n, Z), the posteriors' means of a crystal's atoms, in their order.
        pooled: (B, Z), their means over the atoms of each crystal.
    """

    per_atom: list[Tensor]
    pooled: Tensor


def featurize(
    vae: Any, structures: Sequence[Structure] | Sequence[Atoms], batch_size: int = 256
) -> Features:
    """See `VAEModule.featurize`.

    Args:
        vae: a `VAEModule`, or whatever has its `encode`, `encoder` and `device`.
    """
    crystals = _pack(structures)
    _check_elements(crystals, getattr(vae.encoder, "max_num_elements", None))
    dataset = CrystalDataset.from_batch(crystals)
    per_atom: list[Tensor] = []
    pooled = []
    with inference(vae):
        for indices in torch.arange(len(dataset)).split(batch_size):
            batch = dataset.batch(indices).to(vae.device)
            mean = vae.encode(batch)["posterior"].mean
            pooled.append(segment_mean(mean, batch.batch, batch.num_atoms).cpu())
            per_atom += mean.cpu().split(batch.num_atoms.tolist())
    return Features(per_atom, torch.cat(pooled))


def _pack(structures: Sequence[Any]) -> CrystalBatch:
    from_ase = len(structures) > 0 and isinstance(structures[0], Atoms)
    kind = Atoms if from_ase else Structure
    for i, structure in enumerate(structures):
        if not isinstance(structure, kind):
            raise ValueError(
                f"structure {i} is a {type(structure).__name__}: give a list of pymatgen "
                "Structure, or one of ASE Atoms"
            )
    pack = CrystalBatch.from_atoms if from_ase else CrystalBatch.from_structures
    return pack(structures)


def _check_elements(crystals: CrystalBatch, limit: int | None) -> None:
    if limit is None:  # an encoder that has no such limit, or refuses elements itself
        return
    outside = crystals.atom_types >= limit
    if outside.any():
        atom = int(outside.nonzero()[0])
        z = int(crystals.atom_types[atom])
        raise ValueError(
            f"structure {int(crystals.batch[atom])} has {chemical_symbols[z]} (atomic number {z}): "
            f"the model knows 1 to {limit - 1}"
        )
