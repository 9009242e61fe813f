"""Data sets to latents and back, for models that are built on them."""

import logging
import time
from dataclasses import asdict
from typing import Any

import torch
from omegaconf import DictConfig
from rich.progress import track
from torch import Tensor

from src.commands import load_data, load_vae
from src.data.dataset import CrystalDataset
from src.data.latents import LatentDataset
from src.data.schema import CrystalBatch
from src.utils.checksum import sha256_of
from src.utils.inference import inference
from src.utils.output import new_folder
from src.utils.strict_json import write_json
from src.vae_module import VAEModule

log = logging.getLogger(__name__)

_COUNTS = ("crystals", "atoms", "seconds")


def encode_dataset(
    vae: VAEModule, dataset: CrystalDataset, batch_size: int, progress: str | None = None
) -> LatentDataset:
    """The posterior of every atom of a data set, on the host, in the order of the data set.

    Args:
        batch_size: crystals to encode at a time.
        progress: a title to show progress under.
    """
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


def decode_dataset(
    vae: VAEModule, x: Tensor, dataset: CrystalDataset, batch_size: int
) -> CrystalBatch:
    """Decode a latent for each atom of a data set (atom types that are not predicted are its own).

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
            asked = {
                "x": x[start:stop].to(vae.device),
                "num_atoms": batch.num_atoms,
                "batch": batch.batch,
                "max_num_atoms": batch.max_num_atoms,
                "atom_types": batch.atom_types,
            }
            parts.append(vae.reconstruct(vae.decode(asked), batch).to("cpu"))
            start = stop
    return whole.replace(
        atom_types=torch.cat([part.atom_types for part in parts]),
        frac_coords=torch.cat([part.frac_coords for part in parts]),
        lattices=torch.cat([part.lattices for part in parts]),
    )


def encode(cfg: DictConfig) -> dict[str, Any]:
    """Encode splits as `configs/encode_vae.yaml` says, into the new folder `cfg.output`.

    `src.data.latents.LatentDataset.load` reads it.

    Returns:
        The content of `stats.json`: `checkpoint`, `checkpoint_sha256`, `data_dir`, `read_options`,
        `latent_dim`; `mean`, `std` and `posterior_std` of the training split's channels (see
        `LatentDataset.moments`; None if it is not among the splits); `splits`, with the number of
        crystals and atoms, seconds of encoding and crystals per second of each; and `total`, the
        same of all.

    Raises:
        ValueError: for a checkpoint, data or an output that cannot be used; the message says why.
        FileNotFoundError: for a checkpoint that is not there.
    """
    splits = [cfg.splits] if isinstance(cfg.splits, str) else cfg.splits
    if not splits:
        raise ValueError("splits is empty: name one at least of train, val, test")
    with new_folder(cfg.output, "stats.json", cfg.overwrite) as folder:
        vae, data = load_vae(cfg), load_data(cfg)
        datasets = {split: data.dataset(split) for split in splits}  # fails before the work
        stats: dict[str, Any] = {
            "checkpoint": str(cfg.ckpt_path),
            "checkpoint_sha256": sha256_of(cfg.ckpt_path),
            "data_dir": str(data.data_dir),
            "read_options": asdict(data.read_options),
            "latent_dim": vae.latent_dim,
            **dict.fromkeys(("mean", "std", "posterior_std")),
            "splits": {},
        }
        for split, dataset in datasets.items():
            start = time.perf_counter()
            latents = encode_dataset(vae, dataset, data.eval_batch_size, f"Encoding {split}")
            seconds = time.perf_counter() - start
            latents.save(folder / f"{split}.safetensors")
            stats["splits"][split] = _cost(split, len(latents), len(latents.mean), seconds)
            if split == "train":
                stats |= latents.moments()
        sums = [sum(each[key] for each in stats["splits"].values()) for key in _COUNTS]
        stats["total"] = _cost("all", *sums)
        write_json(folder / "stats.json", stats)
    if "train" not in datasets:
        log.warning("Without the split train there are no moments to normalise latents by")
    log.info("The latents are in %s", cfg.output)
    return stats


def _cost(name: str, crystals: int, atoms: int, seconds: float) -> dict[str, float]:
    rate = crystals / seconds
    log.info(
        "%s: %s crystals, %s atoms, encoded in %.1f s (%s crystals/s)",
        name, f"{crystals:,}", f"{atoms:,}", seconds, f"{rate:,.0f}",
    )  # fmt: skip
    return {
        "crystals": crystals, "atoms": atoms, "seconds": seconds, "crystals_per_second": rate,
    }  # fmt: skip
