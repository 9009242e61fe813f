"""Compare the latents of generated crystals with those of real ones."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pymatgen.core import Structure

from src.commands.trained_model import load_shared, move_to
from src.data.crystal import Crystal, CrystalError
from src.data.dataset import CrystalDataset
from src.data.structures import to_crystal
from src.ldm_module import LDMModule
from src.metrics.generation.two_sample import PERMUTATIONS, energy_test, standardized
from src.nn.transformer import segment_mean
from src.utils.checkpoints import CheckpointError
from src.utils.errors import UserError
from src.utils.inference import inference
from src.vae_module import VAEModule
from src.vae_module.input import choose_trained_cell, pack, prepare

log = logging.getLogger(__name__)

_BATCH_SIZE = 256  # crystals encoded at a time
FIGURES = (
    "latent_energy_distance",
    "latent_p_value",
    "latent_energy_distance_held_out",
    "latent_p_value_held_out",
)
"""The keys of `latent_figures` that are None where there is nothing to compare."""


@dataclass(frozen=True, slots=True)
class Latents:
    """The latents of n crystals that were drawn from a set at random.

    Attributes:
        indices: (n,) of the crystals in the set, in the order in which they were drawn.
        vectors: (n, Z) the mean over the atoms of each crystal of their posterior means.
        num_left_out: of the crystals that were drawn before these and could not be encoded.
    """

    indices: np.ndarray
    vectors: np.ndarray
    num_left_out: int = 0

    def __len__(self) -> int:
        return len(self.indices)


def load_encoder(source: str, device: str) -> VAEModule:
    """The VAE in a checkpoint of a VAE or of a latent diffusion model.

    Args:
        source: a checkpoint, a folder written by `save_pretrained`, or a name on the hub.
        device: see `move_to`.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        UserError: if it is of neither kind, or if there is no such device.
    """
    try:
        vae = load_shared(VAEModule, source, "src/train_vae.py")
    except CheckpointError as of_vae:
        try:
            vae = load_shared(LDMModule, source, "src/train_ldm.py").vae
        except CheckpointError as of_ldm:
            raise UserError(
                f"encoder={source} is neither a VAE ({of_vae}) nor a latent diffusion model "
                f"({of_ldm}): give a checkpoint of train_vae.py or train_ldm.py"
            ) from of_ldm
    return move_to(vae, device)


def draw_latents(vae: VAEModule, structures: Sequence[Structure], size: int, seed: int) -> Latents:
    """Encode crystals of a set that are drawn at random, as many as `size` of those that it can.

    Crystals are converted to the kind of cell that the model was trained on. Those with an element
    that it does not know, or without such a cell, are left out.

    Args:
        vae: the model.
        structures: ordered crystals with a valid geometry. A larger set of the same crystals gives
            others: the draw depends on the number of crystals and the seed.
        size: number of crystals, at least 1.
        seed: random seed.
    """
    cell = choose_trained_cell(vae)
    chosen: list[int] = []
    crystals: list[Crystal] = []
    left_out = 0
    for i in np.random.default_rng(seed).permutation(len(structures)).tolist():
        if len(chosen) == size:
            break
        try:
            crystals.append(prepare(vae, to_crystal(structures[i]), cell).chosen)
            chosen.append(i)
        except CrystalError:
            left_out += 1
    if not crystals:
        return Latents(np.empty(0, dtype=int), np.empty((0, vae.latent_dim)), left_out)
    dataset = CrystalDataset.from_batch(pack(crystals))
    pooled = []
    with inference(vae):
        for part in torch.arange(len(dataset)).split(_BATCH_SIZE):
            batch = dataset.batch(part).to(vae.device)
            mean = vae.encode(batch)["posterior"].mean
            pooled.append(segment_mean(mean, batch.batch, batch.num_atoms).double().cpu())
    return Latents(np.array(chosen), torch.cat(pooled).numpy(), left_out)


def latent_figures(
    generated: Latents, reference: Latents, held_out: Latents | None, seed: int
) -> dict[str, Any]:
    """Test whether generated crystals are distributed as the reference, in the latent space.

    All vectors are standardized by the reference, channel by channel, and all samples are cut to
    the size of the smallest, so that distances can be compared.

    Args:
        generated, reference, held_out: what was drawn of each set; None where there is no held-out
            part of the reference.
        seed: random seed of the permutations.

    Returns:
        - `latent_energy_distance`, `latent_p_value`: of the generated crystals and the reference;
          see `src.metrics.generation.two_sample`.
        - the same with `_held_out`: of the held-out part and the reference, which is what real
          crystals have. None without a held-out part.
        - `latent_sample_size`, `latent_permutations`; `num_not_encoded`: generated crystals that
          were drawn and left out.
    """
    sets = [each for each in (generated, reference, held_out) if each is not None]
    size = min(map(len, sets))
    figures: dict[str, Any] = {
        **dict.fromkeys(FIGURES),
        "latent_sample_size": size,
        "latent_permutations": PERMUTATIONS,
        "num_not_encoded": generated.num_left_out,
    }
    if not size:
        log.warning("One of the sets has no crystal that can be encoded: latents are not compared")
        return figures
    known = reference.vectors[:size]
    for suffix, other in (("", generated), ("_held_out", held_out)):
        if other is not None:
            vectors = standardized(other.vectors[:size], known)
            found = energy_test(vectors, standardized(known, known), seed)
            figures[f"latent_energy_distance{suffix}"] = found.energy_distance
            figures[f"latent_p_value{suffix}"] = found.p_value
    return figures
