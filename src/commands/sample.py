"""Sample crystals from a model and write them to files."""

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from src.commands.references import find_reference, read_crystals
from src.commands.sample_files import Symmetrizer, join_rows, write_samples
from src.commands.trained_model import load_shared, load_vae, move_to, results_folder
from src.data.compositions import read_compositions
from src.data.schema import CrystalBatch
from src.data.structures import NamedStructure
from src.ldm_module import LDMModule
from src.ldm_module.sampling import generate_crystals
from src.report import write_samples_report
from src.utils.checksum import sha256_of
from src.utils.config import to_plain
from src.utils.errors import UserError
from src.utils.output import new_folder, output_of
from src.utils.shards import shard_of
from src.vae_module.sampling import sample_crystals

log = logging.getLogger(__name__)

KNOWN_CRYSTALS = "known.csv.gz"  # beside a checkpoint that is shared with them


def sample(cfg: DictConfig) -> dict[str, Any]:
    """Sample crystals from a VAE as `configs/sample_vae.yaml` says; see `write_to_folder`."""
    _check_format(cfg)
    vae = load_vae(cfg)
    return write_to_folder(cfg, lambda **asked: sample_crystals(vae, **asked), {})


def sample_ldm(cfg: DictConfig) -> dict[str, Any]:
    """Sample crystals from a latent diffusion model as `configs/sample_ldm.yaml` says.

    Besides what `write_to_folder` says, `samples.json` has `conditions`, `sampling_steps`,
    `cfg_scale`, `autoguidance`, `composition_temperature` and `attempts`.
    """
    _check_format(cfg)
    ldm = move_to(load_shared(LDMModule, cfg.ckpt_path, "src/train_ldm.py"), cfg.device)
    how = {
        "conditions": to_plain(cfg.conditions),
        "sampling_steps": cfg.sampling_steps,
        "cfg_scale": cfg.cfg_scale,
        "autoguidance": cfg.autoguidance,
        "composition_temperature": cfg.composition_temperature,
        "attempts": cfg.attempts,
    }
    return write_to_folder(cfg, lambda **asked: generate_crystals(ldm, **asked, **how), how)


def write_to_folder(
    cfg: DictConfig, draw: Callable[..., Iterator[CrystalBatch]], how: Mapping[str, Any]
) -> dict[str, Any]:
    """Write samples to the new folder `cfg.output` (by default `samples` in the run folder; with a
    shard, its number is appended).

    The folder contains `cifs/` or `cifs.zip`, `samples.extxyz` and `samples.json`. The latter has
    the options, the counts, and `samples`: for each sample, `id`, `formula`, `num_atoms`,
    `valid_structure`, `valid_composition` (see `src.metrics.generation.validity`), `written`
    (false if it cannot be written to a file, for example because a number is not finite, or if
    `cfg.only_valid` leaves it out), and
    `reason` (why the structure is invalid). Each batch is written as soon as it is decoded, so
    memory does not limit the number of samples. With `cfg.symmetrize`, each sample also has
    `space_group` (after, within that tolerance), `space_group_before` (within 0.01 Å) and
    `displacement` (largest of an atom, Å), and there are the figures of `symmetry_figures`. With
    `cfg.report`, there is also `report.html`, see
    `write_samples_report`.

    Args:
        cfg: a composed `configs/sample_vae.yaml` or `configs/sample_ldm.yaml`.
        draw: gives the samples; takes the arguments of `sample_crystals` by name.
        how: what else `samples.json` says of how they were made.

    Returns:
        `samples.json` without `samples`.

    Raises:
        UserError: if the checkpoint, options or output folder cannot be used, or if none of the
            samples can be written.
    """
    indices, shard = shard_of(cfg.get("shard"), cfg.num_samples)
    output = output_of(cfg, results_folder(cfg.ckpt_path) / "samples")
    if shard:
        output = output.with_name(f"{output.name}_{shard.replace('/', '_of_')}")
    known = _known_crystals(cfg) if cfg.report else None
    symmetrizer = None if cfg.symmetrize is None else Symmetrizer(cfg.symmetrize)
    compositions = read_compositions(cfg.compositions)
    batches = draw(
        num_samples=cfg.num_samples,
        num_atoms=to_plain(cfg.num_atoms),
        compositions=compositions,
        seed=cfg.seed,
        batch_size=cfg.batch_size,
        indices=indices,
    )
    with (
        new_folder(output, marker="samples.json", overwrite=cfg.overwrite) as folder,
        tempfile.TemporaryFile("w+", dir=folder, encoding="utf-8") as rows,
    ):
        how_written = (cfg.format, rows, symmetrizer, cfg.only_valid)
        counts = write_samples(batches, indices, folder, *how_written)
        if not counts["written"]:
            raise UserError(
                f"none of the {len(indices)} samples is valid"
                if cfg.only_valid
                else f"none of the {len(indices)} samples can be written to a file"
            )
        header = {
            "checkpoint": str(cfg.ckpt_path),
            "checkpoint_sha256": _checksum(Path(cfg.ckpt_path)),
            "seed": cfg.seed,
            "num_samples": cfg.num_samples,
            "num_atoms": to_plain(cfg.num_atoms),
            "compositions": compositions,
            **how,
            **({"shard": shard} if shard else {}),
            **({} if symmetrizer is None else symmetrizer.figures()),
            "only_valid": cfg.only_valid,
            "counts": counts,
        }
        join_rows(folder / "samples.json", header, rows)
        if cfg.report:
            write_samples_report(folder, *(known or ()))
    log.info(
        "Wrote %d samples to %s; valid: %s structures, %s compositions, %s both",
        counts["written"], output, *list(counts.values())[1:],
    )  # fmt: skip
    if missing := len(indices) - counts["written"]:
        why = "are not valid" if cfg.only_valid else "could not be written"
        log.warning("%d samples %s: see samples.json", missing, why)
    return header


def _check_format(cfg: DictConfig) -> None:
    if cfg.format not in ("folder", "zip"):
        raise UserError(f"format must be folder or zip, not {cfg.format!r}")
    if cfg.known is not None and not cfg.report:
        raise UserError(f"known={cfg.known} is for the report only: set report=true")


def _known_crystals(cfg: DictConfig) -> tuple[list[NamedStructure], str] | None:
    """The crystals of `cfg.known` and their path; None if there are none."""
    beside = Path(cfg.ckpt_path).expanduser().with_name(KNOWN_CRYSTALS)
    path = Path(cfg.known).expanduser() if cfg.known is not None else beside
    if cfg.known is None and not path.is_file():
        return None
    reference = find_reference(path, "train")
    return reference.crystals(read_crystals), str(reference)


def _checksum(source: Path) -> str | None:
    """Of a checkpoint; None for a folder or a name on the hub."""
    return sha256_of(source) if source.is_file() else None
