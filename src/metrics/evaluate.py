"""How well a VAE reconstructs crystals."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from src.data.schema import CrystalBatch
from src.metrics.matching import (
    CDVAE,
    PYMATGEN,
    MatcherPool,
    MatcherSettings,
    MatchSummary,
    summarize,
)
from src.metrics.reconstruction import ReconstructionErrors


@torch.no_grad()
def reconstruct_batches(
    vae: Any, batches: Iterable[CrystalBatch]
) -> tuple[list[CrystalBatch], list[CrystalBatch]]:
    """Each batch, and its reconstruction from the posterior's mean, on the host.

    Args:
        vae: a `VAEModule`, or whatever has its `encode`, `decode`, `reconstruct` and `device`.
    """
    was_training = vae.training
    vae.eval()
    targets, predictions = [], []
    try:
        for batch in batches:
            batch = batch.to(vae.device)
            predictions.append(vae.reconstruct(vae.decode(vae.encode(batch)), batch).to("cpu"))
            targets.append(batch.to("cpu"))
    finally:
        vae.train(was_training)
    return targets, predictions


def evaluate_reconstruction(
    vae: Any, batches: Iterable[CrystalBatch], pool: MatcherPool, progress: bool = False
) -> dict[str, float]:
    """Figures of the reconstruction from the posterior's mean, as flat keys.

    `match_rate` and `rmse` with CDVAE's matcher, `match_rate_default` and `rmse_default` with
    pymatgen's defaults, `crmse` of both, `match_timeouts` (counted as not matched), and those of
    `ReconstructionErrors`.
    """
    targets, predictions = reconstruct_batches(vae, batches)
    errors = ReconstructionErrors()
    for predicted, target in zip(predictions, targets, strict=True):
        errors.update(predicted, target)
    cdvae, default = match_batches(targets, predictions, pool, (CDVAE, PYMATGEN), progress)
    return {
        "match_rate": cdvae.match_rate,
        "rmse": cdvae.rmse,
        "crmse": cdvae.crmse,
        "match_rate_default": default.match_rate,
        "rmse_default": default.rmse,
        "crmse_default": default.crmse,
        "match_timeouts": cdvae.num_timeouts + default.num_timeouts,
        **{name: float(value) for name, value in errors.compute().items()},
    }


def match_batches(
    targets: Iterable[CrystalBatch],
    predictions: Iterable[CrystalBatch],
    pool: MatcherPool,
    settings: Sequence[MatcherSettings],
    progress: bool = False,
) -> list[MatchSummary]:
    """Match rate and RMSE under each of the settings."""
    true = [structure for batch in targets for structure in batch.to_structure()]
    predicted = [structure for batch in predictions for structure in _structures(batch)]
    results = pool.match(true, predicted, settings, progress=progress)
    return [summarize(pairs, each) for pairs, each in zip(results, settings, strict=True)]


def _structures(batch: CrystalBatch) -> list[Any]:
    """Structures, with None for a crystal whose numbers make none (an untrained model's)."""
    finite = [math.isfinite(x.frac_coords.sum() + x.lattices.sum()) for x in batch.to_data_list()]
    if all(finite):
        return batch.to_structure()
    structures = batch.replace(
        frac_coords=batch.frac_coords.nan_to_num(), lattices=batch.lattices.nan_to_num()
    ).to_structure()
    return [s if ok else None for s, ok in zip(structures, finite, strict=True)]
