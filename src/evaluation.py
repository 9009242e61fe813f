"""The evaluation of a checkpoint: what it reconstructs, and what its latents are like."""

import dataclasses
import logging
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ase.io
import pandas as pd
import torch
from ase import Atoms
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from safetensors.torch import save
from torch import Tensor

from src.commands import load_data, load_vae, run_folder
from src.data.dataset import CrystalDataset
from src.data.schema import CrystalBatch
from src.encoding import decode_dataset, encode_dataset
from src.metrics.evaluate import SETTINGS, match_batches, reconstruction_figures, to_structures
from src.metrics.latents import latent_statistics, noise_area
from src.metrics.matching import CDVAE, PYMATGEN, UNREDUCED, MatcherPool, summarize
from src.metrics.reconstruction import ReconstructionErrors
from src.metrics.space_groups import SYMPREC
from src.metrics.symmetry import MOTIONS
from src.metrics.tables import by_element, by_num_atoms, crystal_table, metre, rare, rates
from src.nn.transformer import segment_mean
from src.report import write_report
from src.utils.checksum import sha256_of
from src.utils.geometry import transform
from src.utils.output import new_folder
from src.utils.strict_json import json_ready, write_json
from src.vae_module import VAEModule

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `evaluate_vae` found.

    Attributes:
        metrics: figures, as `evaluate_vae` says.
        crystals: a row for each crystal, in the order of the data set.
        originals, reconstructions: the crystals, in that order. The numbers of a reconstruction
            need make no structure: its row has the reason.
        pooled: (B, latent_dim) mean of the posterior means of each crystal's atoms.
    """

    metrics: dict[str, Any]
    crystals: pd.DataFrame
    originals: CrystalBatch
    reconstructions: CrystalBatch
    pooled: Tensor


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate a checkpoint as `configs/eval_vae.yaml` says, and write what was found.

    The folder `cfg.output_dir` (`eval_SPLIT` beside the checkpoint's folder, unless given) has
    `metrics.json`, `per_crystal.csv`, `original.extxyz`, `reconstruction.extxyz`,
    `latents.safetensors` (`pooled`), `training.csv` where the run's curves were found, and
    `report.html` with `figures/`. Crystals are in the same order in all of them; ids tell them
    apart but for readers of extxyz that take "007" for a number.

    Returns:
        The content of `metrics.json`.

    Raises:
        ValueError: for a checkpoint, data or a folder that cannot be used; the message says why.
        FileNotFoundError: for a checkpoint that is not there.
    """
    checkpoint = Path(cfg.ckpt_path)
    vae = load_vae(cfg)
    if cfg.num_crystals is not None and cfg.num_crystals < 1:
        raise ValueError(f"num_crystals is at least 1 (null: all), not {cfg.num_crystals}")
    run_dir = run_folder(checkpoint)
    output_dir = Path(cfg.output_dir or run_dir / f"eval_{cfg.split}")
    with new_folder(output_dir, marker="metrics.json", overwrite=cfg.overwrite) as folder:
        datamodule = load_data(cfg)
        dataset = datamodule.dataset(cfg.split)
        if cfg.num_crystals is not None:
            dataset = dataset.subset(torch.arange(min(cfg.num_crystals, len(dataset))))
        with MatcherPool(cfg.num_workers, timeout=cfg.timeout) as pool:
            evaluation = evaluate_vae(
                vae,
                dataset,
                pool,
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
            "matcher": {"cdvae": asdict(CDVAE), "default": asdict(PYMATGEN), "limit": cfg.timeout},
        }
        metrics = json_ready({**evaluation.metrics, **source})
        write_evaluation(dataclasses.replace(evaluation, metrics=metrics), folder)
        if (run_dir / "metrics.csv").is_file():
            shutil.copy(run_dir / "metrics.csv", folder / "training.csv")
    if cfg.report:  # of a folder that is there, whatever becomes of the report
        write_report(output_dir)
    Console().print(evaluation_table(metrics))
    log.info("The evaluation is in %s", output_dir)
    return metrics


def evaluate_vae(
    vae: VAEModule,
    dataset: CrystalDataset,
    pool: MatcherPool,
    batch_size: int = 256,
    noise_levels: Sequence[float] = (0, 0.05, 0.1, 0.2, 0.5, 1.0),
    num_probed: int | None = 1000,
    motions: Sequence[str] = tuple(MOTIONS),
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Reconstruct crystals and look at the latents that they come back from.

    `metrics` of the result has, decoded from the posterior's mean:

    - `match_rate`, `rmse` (of matched pairs), `crmse` (a pair that does not match is charged
      `stol`: arXiv:2509.12178) and `metre` (a crystal also counts if it matches the reconstruction
      of another one) with CDVAE's matcher settings; the same with `_default` at the end for
      pymatgen's; `match_timeouts`, counted as failures;
    - `atom_type_accuracy`, `frac_coords_rmse`, `coords_rmsd` (Å), `lengths_mae` (Å), `angles_mae`
      (degrees), `volume_mape`; `crystals_evaluated`, and `crystals_without_structure`, whose
      numbers make none;
    - `sampled`: the same, decoded from one draw of the posterior;
    - `gated` and `space_group` (found at `symprec` Å): see `src.metrics.tables.rates`;
    - `by_num_atoms` and `by_element`: see the functions of these names there;
    - `rare`: see the function of this name there; None of a model that does not know what it was
      trained on;
    - `latent`: see `latent_statistics`;
    - `noise`: match rates by `levels`, the standard deviation of noise added to the latent in
      units of each channel's, and the `area` under the curve (see `noise_area`), also with
      `UNREDUCED` settings;
    - `symmetry`: by the names of `MOTIONS`, how far the reconstruction of crystals that are
      written in another way, taken back, is from that of the same crystals as they stand
      (`coords_rmsd` in Å and so on), and their `match_rate`. A model that was trained on Niggli
      cells has never seen what `cell` makes of them.

    Args:
        noise_levels: ascending, from 0; with fewer than two there is no such curve.
        num_probed: crystals, drawn at random, for `noise` and `symmetry`; None for all, 0 for none.
        motions: of `MOTIONS`, for `symmetry`.
        seed: of all that is random here. The result does not depend on `batch_size`.
        progress: show progress.

    Raises:
        ValueError: if `noise_levels` do not ascend from 0, or `num_probed` is negative.
    """
    levels = [float(level) for level in noise_levels]
    if len(levels) > 1 and (levels[0] != 0 or levels != sorted(set(levels))):
        raise ValueError(f"noise_levels ascend from 0, unlike {levels}")
    if num_probed is not None and num_probed < 0:
        raise ValueError(f"num_probed is at least 0 (None: all), not {num_probed}")
    originals = dataset.batch(torch.arange(len(dataset)))
    latents = encode_dataset(vae, dataset, batch_size, "Encoding" if progress else None)
    noise = torch.randn(latents.mean.shape, generator=_generator(seed, 0))
    sample = latents.mean + (0.5 * latents.logvar).exp() * noise
    reconstructions = decode_dataset(vae, latents.mean, dataset, batch_size)
    drawn = decode_dataset(vae, sample, dataset, batch_size)

    structures, rebuilt = originals.to_structure(), to_structures(reconstructions)
    results = pool.match(structures, rebuilt, SETTINGS, progress=progress)
    results_drawn = match_batches([originals], [drawn], pool, progress=progress)
    table = crystal_table(
        dataset.ids, originals, reconstructions, structures, rebuilt, results, results_drawn
    )
    metrics: dict[str, Any] = {
        **reconstruction_figures([originals], [reconstructions], results),
        **metre(structures, rebuilt, results, pool, progress),
        "crystals_evaluated": len(dataset),
        "crystals_without_structure": rebuilt.count(None),
        "sampled": reconstruction_figures([originals], [drawn], results_drawn),
        **rates(table),
        "by_num_atoms": by_num_atoms(table),
        "by_element": by_element(table, originals, reconstructions),
        "rare": rare(table, originals, vae.training_set) if vae.training_set else None,
        "latent": latent_statistics(latents.mean, latents.logvar),
    }
    metrics["space_group"]["symprec"] = SYMPREC

    probed = torch.randperm(len(dataset), generator=_generator(seed, 1))[:num_probed].sort().values
    if len(probed):
        subset, mean = dataset.subset(probed), latents.batch(probed).mean
        here = CrystalDataset.from_batch(reconstructions).batch(probed)
        if len(levels) > 1:
            noise = torch.randn(mean.shape, generator=_generator(seed, 2))
            noise = noise * latents.mean.std(dim=0, correction=0)
            metrics["noise"] = noise_curve(
                vae, subset, pool, mean, noise, levels, batch_size, progress
            )
        metrics["symmetry"] = {
            name: motion_drift(
                vae, subset, pool, here, name, _generator(seed, 3), batch_size, progress
            )
            for name in motions
        }
    pooled = segment_mean(latents.mean, originals.batch, originals.num_atoms)
    return Evaluation(metrics, table, originals, reconstructions, pooled)


def _generator(seed: int, part: int) -> torch.Generator:
    """Of each part of the evaluation, so that leaving one out changes no other."""
    return torch.Generator().manual_seed(seed * 1_000_003 + part)


def noise_curve(
    vae: VAEModule,
    dataset: CrystalDataset,
    pool: MatcherPool,
    mean: Tensor,
    noise: Tensor,
    levels: Sequence[float],
    batch_size: int,
    progress: bool = False,
) -> dict[str, Any]:
    """Match rates with noise on the latents, the same draw at every level.

    Args:
        mean: (N, latent_dim) of the posteriors of the data set's atoms.
        noise: (N, latent_dim), of the standard deviation that is level 1.
        levels: ascending.
    """
    crystals = dataset.batch(torch.arange(len(dataset)))
    settings, found = (*SETTINGS, UNREDUCED), []
    for level in levels:
        if progress:
            log.info("Noise of %g standard deviations on the latents", level)
        decoded = decode_dataset(vae, mean + level * noise, dataset, batch_size)
        results = match_batches([crystals], [decoded], pool, settings, progress)
        found.append([summarize(*each).match_rate for each in zip(results, settings, strict=True)])
    match_rate, match_rate_default, unreduced = (list(each) for each in zip(*found, strict=True))
    return {
        "crystals": len(dataset),
        "levels": list(levels),
        "match_rate": match_rate,
        "match_rate_default": match_rate_default,
        "match_rate_unreduced": unreduced,
        "area": noise_area(levels, match_rate),
        "area_default": noise_area(levels, match_rate_default),
        "area_unreduced": noise_area(levels, unreduced),
    }


def motion_drift(
    vae: VAEModule,
    dataset: CrystalDataset,
    pool: MatcherPool,
    reconstructions: CrystalBatch,
    name: str,
    generator: torch.Generator,
    batch_size: int,
    progress: bool = False,
) -> dict[str, Any]:
    """How far reconstructions move when crystals are written in another way.

    Args:
        reconstructions: of the data set as it stands.
        name: of the way, one of `MOTIONS`.
    """
    if progress:
        log.info("The same crystals written with another %s", MOTIONS[name].word)
    crystals = dataset.batch(torch.arange(len(dataset)))
    motion = MOTIONS[name](crystals, generator)
    moved = CrystalDataset.from_batch(motion.moved)
    latents = encode_dataset(vae, moved, batch_size)
    back = motion.undo(decode_dataset(vae, latents.mean, moved, batch_size))
    errors = ReconstructionErrors(sync_on_compute=False)
    errors.update(back, reconstructions)
    (results,) = match_batches([crystals], [back], pool, [CDVAE], progress)
    return {
        "crystals": len(dataset),
        **{key: float(value) for key, value in errors.compute().items()},
        "match_rate": summarize(results, CDVAE).match_rate,
    }


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write an evaluation's files, as `evaluate` lists them, to a folder that exists."""
    write_json(folder / "metrics.json", evaluation.metrics)
    evaluation.crystals.to_csv(folder / "per_crystal.csv", index=False, float_format="%.6g")
    (folder / "latents.safetensors").write_bytes(save({"pooled": evaluation.pooled}))
    for name in ("original", "reconstruction"):
        frames = _to_atoms(getattr(evaluation, f"{name}s"), evaluation.crystals["id"])
        ase.io.write(folder / f"{name}.extxyz", frames, format="extxyz")


def _to_atoms(crystals: CrystalBatch, ids: Iterable[str]) -> list[Atoms]:
    """ASE `Atoms` with `info["id"]`; zeros for numbers that are not finite."""
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
    """The figures of a `metrics.json` that matter most, for the terminal."""
    table = Table(
        title=f"{metrics['crystals_evaluated']:,} crystals of {metrics['split']}",
        caption="matcher: CDVAE's 0.5, 0.3, 10° and pymatgen's 0.3, 0.2, 5°",
    )
    for name in ("reconstruction", "CDVAE", "pymatgen"):
        table.add_column(name, justify="left" if name == "reconstruction" else "right")

    def row(name: str, form: str, *values: float | None) -> None:
        table.add_row(name, *("-" if value is None else form.format(value) for value in values))

    def both(name: str, form: str, figures: dict[str, Any], key: str) -> None:
        row(name, form, figures[key], figures[f"{key}_default"])

    both("match rate, posterior mean", "{:.2%}", metrics, "match_rate")
    both("  RMSE of matched pairs", "{:.4f}", metrics, "rmse")
    both("  cRMSE, unmatched charged", "{:.4f}", metrics, "crmse")
    both("  METRe", "{:.2%}", metrics, "metre")
    both("match rate, one sample", "{:.2%}", metrics["sampled"], "match_rate")
    both("match rate, valid ones", "{:.2%}", metrics["gated"], "match_rate")
    for name, figures in (metrics.get("rare") or {}).items():
        if figures["crystals"]:
            kind = f"match rate, {figures['crystals']:,} of rare {name}"
            both(kind, "{:.2%}", figures, "match_rate")
    if noise := metrics.get("noise"):
        curves = (noise[f"match_rate{suffix}"] for suffix in ("", "_default", "_unreduced"))
        for level, cdvae, default, unreduced in zip(noise["levels"], *curves, strict=True):
            if level:
                row(f"match rate, noise {level:g} std", "{:.2%}", cdvae, default)
                row("  cells as they are", "{:.2%}", unreduced)
        both("  area under that curve", "{:.3f}", noise, "area")
    table.add_section()
    latent, kl = metrics["latent"], metrics["latent"]["kl_per_channel"]
    row("atom types right", "{:.2%}", metrics["atom_type_accuracy"])
    row("distance of atoms, RMSD", "{:.4f} Å", metrics["coords_rmsd"])
    row("lengths, mean error", "{:.4f} Å", metrics["lengths_mae"])
    row("angles, mean error", "{:.3f}°", metrics["angles_mae"])
    row("volume, mean error", "{:.2%}", metrics["volume_mape"])
    row("space group kept", "{:.2%}", metrics["space_group"]["kept"])
    for name, drift in metrics.get("symmetry", {}).items():
        row(f"moves with another {MOTIONS[name].word}", "{:.1e} Å", drift["coords_rmsd"])
    row("active units", "{}", latent["active_units"])
    row("KL per atom", "{:.2f} nats", None if None in kl else sum(kl))
    row("matcher time-outs", "{}", metrics["match_timeouts"])
    return table
