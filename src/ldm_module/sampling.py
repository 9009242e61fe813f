"""Sample crystals: draw sizes or choose compositions, solve the flow from noise, and decode."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.data.schema import CrystalBatch
from src.ldm_module.compositions import MAX_ELEMENTS
from src.ldm_module.conditions import check_beyond_composition
from src.ldm_module.contacts import check_attempts, draw_apart
from src.ldm_module.ldm_module import LDMModule
from src.utils.precision import half_precision
from src.vae_module.sampling import LatentSampler, TypeSampler, sample_crystals, standard_normal


def generate_crystals(
    ldm: LDMModule,
    num_samples: int,
    num_atoms: int | Sequence[int] | None = None,
    compositions: Sequence[str] | None = None,
    conditions: Mapping[str, Any] | None = None,
    sampling_steps: int = 10,
    cfg_scale: float = 1.0,
    seed: int = 0,
    batch_size: int = 2048,
    indices: range | None = None,
    autoguidance: float = 3.0,
    composition_temperature: float = 0.7,
    attempts: int = 8,
) -> Iterator[CrystalBatch]:
    """Generate crystals, each of which depends on the seed and its index alone.

    Args:
        ldm: the model.
        num_samples, num_atoms, compositions, seed, batch_size, indices: see `sample_crystals`.
        conditions: see `LDMModule.sample`; one request for all.
        sampling_steps, cfg_scale, autoguidance, composition_temperature, attempts: see the same.

    Returns:
        An iterator over batches on the CPU, in the order of the samples.

    Raises:
        UserError: as `sample_crystals`; if `sampling_steps` is less than 1, for a condition that
            the model does not know or that the given compositions settle, or for a model that has
            not been trained.
    """
    ldm.check_request(sampling_steps, conditions or {})
    check_attempts(attempts)
    if compositions is not None:
        check_beyond_composition(conditions or {})
    draw = noise_to_latents(ldm, sampling_steps, cfg_scale, conditions, autoguidance, attempts)
    types = None
    if ldm.compositions is not None:
        types = compositions_drawn_by(ldm, cfg_scale, conditions, composition_temperature)
    given = (num_atoms, compositions, seed, batch_size, draw, indices, types, ldm.decode)
    return sample_crystals(ldm.vae, num_samples, *given)


def compositions_drawn_by(
    ldm: LDMModule,
    cfg_scale: float,
    conditions: Mapping[str, Any] | None,
    temperature: float,
) -> TypeSampler:
    """Fills in the atom types that are not given; see `LDMModule.draw_compositions`."""

    def draw(request: CrystalBatch, sources: Sequence[np.random.Generator]) -> CrystalBatch:
        drawn = [source.random((MAX_ELEMENTS, 2), dtype=np.float32) for source in sources]
        uniform = torch.from_numpy(np.stack(drawn)).to(ldm.device)
        asked = request.to(ldm.device)
        return ldm.draw_compositions(asked, uniform, cfg_scale, conditions, temperature)

    return draw


def noise_to_latents(
    ldm: LDMModule,
    sampling_steps: int,
    cfg_scale: float,
    conditions: Mapping[str, Any] | None,
    autoguidance: float,
    attempts: int,
) -> LatentSampler:
    """Latents that the model makes of standard normal noise; see `LDMModule.sample_latents`."""
    draw_noise = standard_normal(ldm.vae.latent_dim)

    def draw(request: CrystalBatch, sources: Sequence[np.random.Generator]) -> Tensor:
        def draw_some(part: CrystalBatch, indices: Tensor) -> Tensor:
            noise = draw_noise(part, [sources[i] for i in indices.tolist()]).to(ldm.device)
            how = (sampling_steps, cfg_scale, conditions)
            with half_precision(ldm.device):  # as in training
                return ldm.sample_latents(part, noise, *how, autoguidance=autoguidance)

        return draw_apart(draw_some, ldm.decode, request.to(ldm.device), attempts)

    return draw
