"""Encode whole data sets to latents, and decode them."""

import torch
from rich.progress import track
from torch import Tensor

from src.data.dataset import CrystalDataset
from src.data.latents import LatentDataset
from src.data.schema import CrystalBatch
from src.utils.inference import inference
from src.vae_module.elements import check_dataset, readers
from src.vae_module.vae_module import VAEModule


def encode_dataset(
    vae: VAEModule, dataset: CrystalDataset, batch_size: int, progress: str | None = None
) -> LatentDataset:
    """Encode a data set: the posterior of every atom, on the host, in the order of the data set.

    Args:
        batch_size: crystals to encode at a time.
        progress: title of the progress bar; None for no bar.

    Raises:
        UserError: for an element that the model does not know.
    """
    check_dataset(dataset, "cannot encode", *readers(vae))
    mean = torch.empty(len(dataset.atom_types), vae.latent_dim)
    logvar = torch.empty_like(mean)
    parts = torch.arange(len(dataset)).split(batch_size)
    start = 0
    with inference(vae):
        for part in track(parts, progress or "", disable=progress is None, transient=True):
            batch = dataset.batch(part).to(vae.device)
            posterior = vae.encode(batch)["posterior"]
            stop = start + len(batch.atom_types)
            mean[start:stop] = posterior.mean
            logvar[start:stop] = posterior.logvar
            start = stop
    return LatentDataset(
        mean, logvar, dataset.atom_types, dataset.num_atoms, dataset.ids, dataset.y
    )


def decode_latents(vae: VAEModule, x: Tensor, batch: CrystalBatch) -> CrystalBatch:
    """Decode latents to crystals.

    Args:
        x: (N, latent_dim).
        batch: defines the number of atoms in each crystal and, if the model does not predict them,
            the atom types. Its other fields are replaced.
    """
    encoded = {
        "x": x,
        "num_atoms": batch.num_atoms,
        "batch": batch.batch,
        "max_num_atoms": batch.max_num_atoms,
        "atom_types": batch.atom_types,
    }
    return vae.reconstruct(vae.decode(encoded), batch)


def decode_dataset(
    vae: VAEModule, x: Tensor, dataset: CrystalDataset, batch_size: int
) -> CrystalBatch:
    """Decode a latent for each atom of a data set.

    If the model does not predict atom types, they are taken from the data set.

    Args:
        x: (N, latent_dim).
        batch_size: crystals to decode at a time.

    Returns:
        All the crystals, on the host.
    """
    whole = dataset.batch(torch.arange(len(dataset)))
    parts: list[CrystalBatch] = []
    start = 0
    with inference(vae):
        for indices in torch.arange(len(dataset)).split(batch_size):
            batch = dataset.batch(indices).to(vae.device)
            stop = start + len(batch.batch)
            parts.append(decode_latents(vae, x[start:stop].to(vae.device), batch).to("cpu"))
            start = stop
    return whole.replace(
        atom_types=torch.cat([part.atom_types for part in parts]),
        frac_coords=torch.cat([part.frac_coords for part in parts]),
        lattices=torch.cat([part.lattices for part in parts]),
    )
