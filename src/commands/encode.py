"""Encode the splits of a data set, and write files of latents to train other models on."""

import logging
import time
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig

from src.commands.trained_model import load_data, load_vae
from src.utils.checksum import sha256_of
from src.utils.errors import UserError
from src.utils.output import new_folder
from src.utils.strict_json import write_json
from src.vae_module.datasets import encode_dataset
from src.vae_module.elements import check_dataset, readers

log = logging.getLogger(__name__)

_COUNTS = ("crystals", "atoms", "seconds")


def encode(cfg: DictConfig) -> dict[str, Any]:
    """Encode splits as configured in `configs/encode_vae.yaml` and write them to `cfg.output`.

    `src.data.latents.LatentDataset.load` reads the files.

    Returns:
        The content of `stats.json`: `checkpoint`, `checkpoint_sha256`, `data_dir`, `read_options`,
        `latent_dim`; `mean`, `std` and `posterior_std` of the training split's channels (see
        `LatentDataset.moments`; None if it was not encoded); `splits`, with each split's number of
        crystals and atoms, encoding time in seconds and crystals per second; and `total`, the same
        over all splits.

    Raises:
        UserError: if the checkpoint, data or output folder cannot be used; the message says why.
        FileNotFoundError: if the checkpoint does not exist.
    """
    splits = [cfg.splits] if isinstance(cfg.splits, str) else cfg.splits
    if not splits:
        raise UserError("splits is empty: name at least one of train, val and test")
    with new_folder(cfg.output, "stats.json", cfg.overwrite) as folder:
        vae = load_vae(cfg)
        data = load_data(cfg, vae)
        datasets = {split: data.dataset(split) for split in splits}  # fails early
        for split, dataset in datasets.items():
            check_dataset(dataset, f"split {split} of {data.data_dir}", *readers(vae))
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
        log.warning("stats.json has no mean and std, because the train split was not encoded")
    log.info("Wrote the latents to %s", cfg.output)
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
