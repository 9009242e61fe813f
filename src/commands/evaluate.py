"""Evaluate a checkpoint and write the results to files."""

import dataclasses
import logging
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ase.io
import torch
from ase import Atoms
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from safetensors.torch import save

from src.commands.trained_model import load_data, load_vae, results_folder, run_folder
from src.data.schema import CrystalBatch
from src.metrics.matching import CDVAE, PYMATGEN, open_matcher
from src.metrics.reconstruction.invariance import TRANSFORMATIONS
from src.report import write_report
from src.utils.checksum import sha256_of
from src.utils.errors import UserError
from src.utils.geometry import transform
from src.utils.output import new_folder, output_of
from src.utils.strict_json import json_ready, write_json
from src.vae_module.elements import check_dataset, readers
from src.vae_module.evaluation import Evaluation, evaluate_vae

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate a checkpoint as configured in `configs/eval_vae.yaml` and write the results.

    The folder `cfg.output` (by default `eval_SPLIT` in the run folder) contains
    `metrics.json`, `per_crystal.csv`, `original.extxyz`, `reconstruction.extxyz`,
    `latents.safetensors` (`pooled`), `training.csv` if the run has a `metrics.csv`, and
    `report.html` with `figures/`. The crystals have the same order and IDs in all files, but some
    extxyz readers turn an ID such as "007" into a number.

    Returns:
        The content of `metrics.json`.

    Raises:
        UserError: if the checkpoint, data or output folder cannot be used; the message says why.
        FileNotFoundError: if the checkpoint does not exist.
    """
    checkpoint = Path(cfg.ckpt_path)
    matcher = open_matcher(cfg.matcher, cfg.num_workers, cfg.timeout)  # starts no process yet
    vae = load_vae(cfg)
    if cfg.num_crystals is not None and cfg.num_crystals < 1:
        raise UserError(f"num_crystals must be at least 1 (null: all), not {cfg.num_crystals}")
    run_dir = run_folder(checkpoint)
    output_dir = output_of(cfg, results_folder(checkpoint) / f"eval_{cfg.split}")
    with new_folder(output_dir, marker="metrics.json", overwrite=cfg.overwrite) as folder:
        datamodule = load_data(cfg, vae)
        dataset = datamodule.dataset(cfg.split)
        check_dataset(dataset, f"split {cfg.split} of {datamodule.data_dir}", *readers(vae))
        if cfg.num_crystals is not None:
            dataset = dataset.subset(torch.arange(min(cfg.num_crystals, len(dataset))))
        with matcher:
            evaluation = evaluate_vae(
                vae,
                dataset,
                matcher,
                batch_size=datamodule.eval_batch_size,
                noise_levels=cfg.noise_levels or (),
                num_probed=cfg.num_probed,
                seed=cfg.seed,
                progress=True,
            )
        source = {
            "checkpoint": str(checkpoint),
            "checkpoint_sha256": sha256_of(checkpoint),
            "data_dir": str(datamodule.data_dir),
            "split": cfg.split,
            "seed": cfg.seed,
            "matcher": matcher.name,
            "tolerances": {"cdvae": asdict(CDVAE), "default": asdict(PYMATGEN)},
            "timeout": cfg.timeout,
        }
        metrics = json_ready({**evaluation.metrics, **source})
        write_evaluation(dataclasses.replace(evaluation, metrics=metrics), folder)
        if (run_dir / "metrics.csv").is_file():
            shutil.copy(run_dir / "metrics.csv", folder / "training.csv")
    if cfg.report:  # written last: if it fails, the other results are kept
        write_report(output_dir)
    Console().print(evaluation_table(metrics))
    log.info("Wrote the evaluation to %s", output_dir)
    return metrics


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write the files listed in `evaluate` to an existing folder."""
    write_json(folder / "metrics.json", evaluation.metrics)
    evaluation.crystals.to_csv(folder / "per_crystal.csv", index=False, float_format="%.6g")
    (folder / "latents.safetensors").write_bytes(save({"pooled": evaluation.pooled}))
    for name in ("original", "reconstruction"):
        frames = _to_atoms(getattr(evaluation, f"{name}s"), evaluation.crystals["id"])
        ase.io.write(folder / f"{name}.extxyz", frames, format="extxyz")


def _to_atoms(crystals: CrystalBatch, ids: Iterable[str]) -> list[Atoms]:
    """ASE `Atoms` with `info["id"]`; numbers that are not finite become 0."""
    lattices = crystals.lattices.double()
    positions = transform(crystals.frac_coords.double(), lattices[crystals.batch])
    sizes = crystals.num_atoms.tolist()
    parts = zip(
        crystals.atom_types.split(sizes),
        positions.nan_to_num(0, 0, 0).split(sizes),
        lattices.nan_to_num(0, 0, 0),
        ids,
        strict=True,
    )
    return [
        Atoms(numbers.numpy(), positions=x.numpy(), cell=cell.numpy(), pbc=True, info={"id": id_})
        for numbers, x, cell, id_ in parts
    ]


def evaluation_table(metrics: dict[str, Any]) -> Table:
    """The most important metrics of a `metrics.json`, for the terminal."""
    table = Table(
        title=f"{metrics['crystals_evaluated']:,} crystals of {metrics['split']}",
        caption=f"matcher: {metrics['matcher']}, with CDVAE's tolerances 0.5, 0.3, 10° and "
        "pymatgen's 0.3, 0.2, 5°",
    )
    for name in ("reconstruction", "CDVAE", "pymatgen"):
        table.add_column(name, justify="left" if name == "reconstruction" else "right")

    def row(name: str, form: str, *values: float | None) -> None:
        table.add_row(name, *("-" if value is None else form.format(value) for value in values))

    def both(name: str, form: str, figures: dict[str, Any], key: str) -> None:
        row(name, form, figures[key], figures[f"{key}_default"])

    both("match rate, posterior mean", "{:.2%}", metrics, "match_rate")
    both("  RMSE of matched pairs", "{:.4f}", metrics, "rmse")
    both("  cRMSE, unmatched count as stol", "{:.4f}", metrics, "crmse")
    both("  METRe", "{:.2%}", metrics, "metre")
    both("match rate, one sample", "{:.2%}", metrics["sampled"], "match_rate")
    both("matched and valid", "{:.2%}", metrics["gated"], "match_rate")
    for name, figures in (metrics.get("rare") or {}).items():
        if figures["crystals"]:
            kind = f"match rate, {figures['crystals']:,} of rare {name}"
            both(kind, "{:.2%}", figures, "match_rate")
    if noise := metrics.get("noise"):
        curves = (noise[f"match_rate{suffix}"] for suffix in ("", "_default", "_unreduced"))
        for level, cdvae, default, unreduced in zip(noise["levels"], *curves, strict=True):
            if level:
                row(f"match rate, noise {level:g} std", "{:.2%}", cdvae, default)
                row("  without reduction to primitive cells", "{:.2%}", unreduced)
        both("  area under the noise curve", "{:.3f}", noise, "area")
        distances = (noise.get(name, []) for name in ("coords_median", "coords_rmsd"))
        for level, median, rmsd in zip(noise["levels"], *distances, strict=False):
            row(f"displacement, noise {level:g} std: median, RMSD", "{:.3f} Å", median, rmsd)
    table.add_section()
    latent, kl = metrics["latent"], metrics["latent"]["kl_per_channel"]
    row("atom type accuracy", "{:.2%}", metrics["atom_type_accuracy"])
    row("atom displacement, RMSD", "{:.4f} Å", metrics["coords_rmsd"])
    row("lengths, mean error", "{:.4f} Å", metrics["lengths_mae"])
    row("angles, mean error", "{:.3f}°", metrics["angles_mae"])
    row("volume, mean error", "{:.2%}", metrics["volume_mape"])
    row("space group kept", "{:.2%}", metrics["space_group"]["kept"])
    for name, drift in metrics.get("symmetry", {}).items():
        row(f"change, other {TRANSFORMATIONS[name].changes}", "{:.1e} Å", drift["coords_rmsd"])
    row("active units", "{}", latent["active_units"])
    row("KL per atom", "{:.2f} nats", None if None in kl else sum(kl))
    row("matcher timeouts", "{}", metrics["match_timeouts"])
    return table
