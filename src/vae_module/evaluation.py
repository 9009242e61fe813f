"""Evaluate the reconstructions and the latents of a VAE."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from src.data.dataset import CrystalDataset
from src.data.schema import CrystalBatch
from src.metrics.matching import CDVAE, UNREDUCED, AnyMatcher, summarize
from src.metrics.reconstruction.errors import ReconstructionErrors
from src.metrics.reconstruction.evaluate import (
    SETTINGS,
    Prepared,
    match_prepared,
    part_of,
    prepare_batches,
    reconstruction_figures,
    to_structures,
)
from src.metrics.reconstruction.invariance import TRANSFORMATIONS
from src.metrics.reconstruction.latents import latent_statistics, noise_area
from src.metrics.reconstruction.tables import (
    by_element,
    by_num_atoms,
    crystal_table,
    metre,
    rare,
    rates,
)
from src.metrics.space_groups import SYMPREC
from src.nn.transformer import segment_mean
from src.utils.errors import UserError
from src.utils.geometry import transform, wrapped_difference
from src.vae_module.datasets import decode_dataset, encode_dataset
from src.vae_module.vae_module import VAEModule


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of `evaluate_vae`.

    Attributes:
        metrics: see `evaluate_vae`.
        crystals: one row per crystal, in the order of the data set.
        originals, reconstructions: the crystals, in the same order. If a reconstruction is not a
            valid structure, its row gives the reason.
        pooled: (B, latent_dim) mean of the posterior means over each crystal's atoms.
    """

    metrics: dict[str, Any]
    crystals: pd.DataFrame
    originals: CrystalBatch
    reconstructions: CrystalBatch
    pooled: Tensor


def evaluate_vae(
    vae: VAEModule,
    dataset: CrystalDataset,
    matcher: AnyMatcher,
    batch_size: int = 256,
    noise_levels: Sequence[float] = (0, 0.05, 0.1, 0.2, 0.5, 1.0),
    num_probed: int | None = 1000,
    transformations: Sequence[str] = tuple(TRANSFORMATIONS),
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Evaluate how well a VAE reconstructs crystals, and analyze its latents.

    The result's `metrics` contains the following, for reconstructions from the posterior mean:

    - `match_rate`, `rmse` (of matched pairs), `crmse` (a pair that does not match is charged
      `stol`: arXiv:2509.12178) and `metre` (a crystal also counts if it matches the reconstruction
      of another one) with CDVAE's matcher settings; the same with `_default` at the end for
      pymatgen's; `match_timeouts`, counted as failures;
    - `atom_type_accuracy`, `frac_coords_rmse`, `coords_rmsd` (Å), `lengths_mae` (Å), `angles_mae`
      (degrees), `volume_mape`; `crystals_evaluated`, and `crystals_without_structure`, whose
      reconstructions are not valid structures;
    - `sampled`: the same, for reconstructions from one posterior sample;
    - `gated` and `space_group` (found with `symprec` in Å): see `rates` in
      `src.metrics.reconstruction.tables`;
    - `by_num_atoms`, `by_element` and `rare`: see the functions of the same name there; `rare` is
      None if the checkpoint does not record its training set;
    - `latent`: see `latent_statistics`;
    - `noise`: match rates with noise on the latents. `levels` are its standard deviations in units
      of each channel's. `area` is the area under the curve (see `noise_area`). The same is given
      for `UNREDUCED` settings;
    - `symmetry`: for each of `TRANSFORMATIONS`, the errors (`coords_rmsd` in Å and so on) between
      the reconstructions of the original and of the transformed crystals, after undoing the
      transformation; and the `match_rate` of the latter. A model trained on Niggli cells has never
      seen the kind of cells that the transformation `cell` creates.

    Args:
        noise_levels: ascending, starting at 0; with fewer than two levels, `noise` is omitted.
        num_probed: number of crystals, drawn at random, for `noise` and `symmetry`; None for all, 0
            for none.
        transformations: keys of `TRANSFORMATIONS`, for `symmetry`.
        seed: seed of all random numbers. The result does not depend on `batch_size`.
        progress: show progress.

    Raises:
        UserError: if `noise_levels` do not ascend from 0, or `num_probed` is negative.
    """
    levels = [float(level) for level in noise_levels]
    if len(levels) > 1 and (levels[0] != 0 or levels != sorted(set(levels))):
        raise UserError(f"noise_levels must ascend from 0, not {levels}")
    if num_probed is not None and num_probed < 0:
        raise UserError(f"num_probed must be at least 0 (None: all), not {num_probed}")
    originals = dataset.batch(torch.arange(len(dataset)))
    latents = encode_dataset(vae, dataset, batch_size, "Encoding" if progress else None)
    noise = torch.randn(latents.mean.shape, generator=_generator(seed, 0))
    sample = latents.mean + (0.5 * latents.logvar).exp() * noise
    reconstructions = decode_dataset(vae, latents.mean, dataset, batch_size)
    drawn = decode_dataset(vae, sample, dataset, batch_size)

    targets = prepare_batches([originals], matcher)
    results, results_drawn = (
        match_prepared(
            targets, prepare_batches([each], matcher), matcher, progress=progress and title
        )
        for each, title in (
            (reconstructions, "matching, posterior mean"),
            (drawn, "matching, one sample"),
        )
    )
    structures, rebuilt = originals.to_structure(), to_structures(reconstructions)
    table = crystal_table(
        dataset.ids, originals, reconstructions, structures, rebuilt, results, results_drawn
    )
    metrics: dict[str, Any] = {
        **reconstruction_figures([originals], [reconstructions], results),
        **metre(structures, rebuilt, results, matcher, progress),
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
        probed_targets = part_of(targets, probed.tolist())
        if len(levels) > 1:
            noise = torch.randn(mean.shape, generator=_generator(seed, 2))
            noise = noise * latents.mean.std(dim=0, correction=0)
            metrics["noise"] = noise_curve(
                vae, subset, matcher, probed_targets, mean, noise, levels, batch_size, progress
            )
        metrics["symmetry"] = {
            name: invariance_errors(
                vae,
                subset,
                matcher,
                probed_targets,
                here,
                name,
                _generator(seed, 3),
                batch_size,
                progress,
            )
            for name in transformations
        }
    pooled = segment_mean(latents.mean, originals.batch, originals.num_atoms)
    return Evaluation(metrics, table, originals, reconstructions, pooled)


def _generator(seed: int, part: int) -> torch.Generator:
    """A random generator for one part of the evaluation, so that the parts are independent."""
    return torch.Generator().manual_seed(seed * 1_000_003 + part)


def noise_curve(
    vae: VAEModule,
    dataset: CrystalDataset,
    matcher: AnyMatcher,
    targets: Prepared,
    mean: Tensor,
    noise: Tensor,
    levels: Sequence[float],
    batch_size: int,
    progress: bool = False,
) -> dict[str, Any]:
    """Match rates and errors with noise on the latents: the same, scaled, at every level.

    Besides match rates, it gives for each level `coords_median`, the median distance in Å of an
    atom from its original position, and errors that `ReconstructionErrors` defines.

    Args:
        targets: the data set's crystals, from `prepare_batches`.
        mean: (N, latent_dim) of the posteriors of the data set's atoms.
        noise: (N, latent_dim), of the standard deviation that is level 1.
        levels: ascending.
    """
    settings, found = (*SETTINGS, UNREDUCED), []
    originals = dataset.batch(torch.arange(len(dataset)))
    errors: dict[str, list[float]] = {name: [] for name in NOISE_ERRORS}
    for level in levels:
        decoded = decode_dataset(vae, mean + level * noise, dataset, batch_size)
        for name, value in _noise_errors(decoded, originals).items():
            errors[name].append(value)
        predictions = prepare_batches([decoded], matcher)
        title = f"matching, noise {level:g} std ({levels.index(level) + 1} of {len(levels)})"
        results = match_prepared(targets, predictions, matcher, settings, progress and title)
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
        **errors,
    }


NOISE_ERRORS = ("coords_median", "coords_rmsd", "atom_type_accuracy", "lengths_mae", "angles_mae")


def _noise_errors(decoded: CrystalBatch, originals: CrystalBatch) -> dict[str, float]:
    metric = ReconstructionErrors()
    metric.update(decoded, originals)
    found = {name: float(value) for name, value in metric.compute().items()}
    difference = wrapped_difference(decoded.frac_coords, originals.frac_coords)
    distance = transform(difference, originals.lattices[originals.batch]).norm(dim=-1)
    found["coords_median"] = float(distance.median())
    return {name: found[name] for name in NOISE_ERRORS}


def invariance_errors(
    vae: VAEModule,
    dataset: CrystalDataset,
    matcher: AnyMatcher,
    targets: Prepared,
    reconstructions: CrystalBatch,
    name: str,
    generator: torch.Generator,
    batch_size: int,
    progress: bool = False,
) -> dict[str, Any]:
    """How much reconstructions change when the same crystals are described differently.

    Args:
        targets: the data set's crystals, from `prepare_batches`.
        reconstructions: of the data set in its own description.
        name: one of `TRANSFORMATIONS`.
    """
    crystals = dataset.batch(torch.arange(len(dataset)))
    transformed = TRANSFORMATIONS[name](crystals, generator)
    moved = CrystalDataset.from_batch(transformed.batch)
    latents = encode_dataset(vae, moved, batch_size)
    back = transformed.undo(decode_dataset(vae, latents.mean, moved, batch_size))
    errors = ReconstructionErrors(sync_on_compute=False)
    errors.update(back, reconstructions)
    predictions = prepare_batches([back], matcher)
    title = f"matching, other {TRANSFORMATIONS[name].changes}"
    (results,) = match_prepared(targets, predictions, matcher, [CDVAE], progress and title)
    return {
        "crystals": len(dataset),
        **{key: float(value) for key, value in errors.compute().items()},
        "match_rate": summarize(results, CDVAE).match_rate,
    }
