"""Sample crystals from a model and write them to files."""

import logging
import tempfile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from src.commands.sample_files import join_rows, write_samples
from src.commands.trained_model import load_vae, run_folder
from src.data.compositions import read_compositions
from src.utils.checksum import sha256_of
from src.utils.config import to_plain
from src.utils.errors import UserError
from src.utils.output import new_folder
from src.vae_module.sampling import sample_crystals

log = logging.getLogger(__name__)


def sample(cfg: DictConfig) -> dict[str, Any]:
    """Sample crystals as configured in `configs/sample_vae.yaml` and write them to `cfg.output`
    (by default `samples` in the run folder).

    The folder contains `cifs/` or `cifs.zip`, `samples.extxyz` and `samples.json`. The latter has
    the options, the counts, and `samples`: for each sample, `id`, `formula`, `num_atoms`,
    `valid_structure`, `valid_composition` (see `src.metrics.generation.validity`), `written`
    (false if it cannot be written to a file, for example because a number is not finite), and
    `reason` (why the structure is invalid). Each batch is written as soon as it is decoded, so
    memory does not limit the number of samples.

    Returns:
        `samples.json` without `samples`.

    Raises:
        UserError: if the checkpoint, options or output folder cannot be used, or if none of the
            samples can be written.
    """
    if cfg.format not in ("folder", "zip"):
        raise UserError(f"format must be folder or zip, not {cfg.format!r}")
    output = Path(cfg.output or run_folder(cfg.ckpt_path) / "samples")
    vae = load_vae(cfg)
    batches = sample_crystals(
        vae,
        cfg.num_samples,
        to_plain(cfg.num_atoms),
        read_compositions(cfg.compositions),
        cfg.seed,
        cfg.batch_size,
    )
    with (
        new_folder(output, marker="samples.json", overwrite=cfg.overwrite) as folder,
        tempfile.TemporaryFile("w+", dir=folder, encoding="utf-8") as rows,
    ):
        counts = write_samples(batches, cfg.num_samples, folder, cfg.format, rows)
        if not counts["written"]:
            raise UserError(f"none of the {cfg.num_samples} samples can be written to a file")
        header = {
            "checkpoint": str(cfg.ckpt_path),
            "checkpoint_sha256": sha256_of(cfg.ckpt_path),
            "seed": cfg.seed,
            "num_samples": cfg.num_samples,
            "num_atoms": to_plain(cfg.num_atoms),
            "compositions": to_plain(cfg.compositions),
            "counts": counts,
        }
        join_rows(folder / "samples.json", header, rows)
    log.info(
        "Wrote %d samples to %s; valid: %s structures, %s compositions, %s both",
        counts["written"], output, *list(counts.values())[1:],
    )  # fmt: skip
    if missing := cfg.num_samples - counts["written"]:
        log.warning("%d samples could not be written: see samples.json", missing)
    return header
