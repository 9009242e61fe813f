"""Mean and spread of latents and of conditions over the training set."""

import torch
from rich.progress import track
from torch import Tensor

from src.data.dataset import CrystalDataset
from src.ldm_module.conditions import Conditions
from src.ldm_module.origins import ORIGINS
from src.utils.inference import inference
from src.vae_module.vae_module import VAEModule

NUM_CRYSTALS = 50_000  # enough for means and standard deviations
BATCH_SIZE = 512


def fit_statistics(
    vae: VAEModule, conditions: Conditions, origins: str, dataset: CrystalDataset
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent channel; the conditions see their values.

    All processes of a distributed run get the same result.

    Args:
        vae: its posteriors are sampled.
        conditions: see `Condition.fit`.
        origins: of the crystals, as in training: one of `ORIGINS`.
        dataset: the training set; of a large one, a random part is used.

    Returns:
        (Z,) each.
    """
    generator = torch.Generator(vae.device).manual_seed(0)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    latents, values = [], []
    parts = order[:NUM_CRYSTALS].split(BATCH_SIZE)
    for part in track(parts, "Encoding the training set", transient=True):
        batch = dataset.batch(part).to(vae.device)
        with inference(vae):
            posterior = vae.encode(ORIGINS[origins](batch, generator))["posterior"]
        latents.append(posterior.sample(generator=generator))
        values.append(conditions.values(batch))
    for condition, *seen in zip(conditions.each, *values, strict=True):
        condition.fit(torch.cat(seen))
    everything = torch.cat(latents)
    return everything.mean(0), everything.std(0, correction=0)
