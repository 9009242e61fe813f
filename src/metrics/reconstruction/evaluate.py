"""Reconstruct crystals with a VAE and measure how well they match the originals."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from pymatgen.core import Structure

from src.data.schema import CrystalBatch
from src.metrics import PreparedCrystals
from src.metrics.matching import (
    CDVAE,
    PYMATGEN,
    AnyMatcher,
    FastMatcher,
    MatcherSettings,
    PairResult,
    summarize,
)
from src.metrics.reconstruction.errors import ReconstructionErrors
from src.utils.inference import inference

SETTINGS = (CDVAE, PYMATGEN)
"""Matcher settings that every reconstruction is evaluated with, in this order."""


def reconstruct_batches(
    vae: Any, batches: Iterable[CrystalBatch]
) -> tuple[list[CrystalBatch], list[CrystalBatch]]:
    """Reconstruct batches from the posterior means.

    Args:
        vae: a `VAEModule`, or an object with the same `encode`, `decode`, `reconstruct` and
            `device`.

    Returns:
        The original batches and their reconstructions, on the CPU.
    """
    targets, predictions = [], []
    with inference(vae):
        for batch in batches:
            batch = batch.to(vae.device)
            predictions.append(vae.reconstruct(vae.decode(vae.encode(batch)), batch).to("cpu"))
            targets.append(batch.to("cpu"))
    return targets, predictions


def evaluate_reconstruction(
    vae: Any, batches: Iterable[CrystalBatch], matcher: AnyMatcher, progress: bool | str = False
) -> dict[str, float]:
    """Reconstruct from the posterior means and return the `reconstruction_figures`."""
    targets, predictions = reconstruct_batches(vae, batches)
    results = match_batches(targets, predictions, matcher, SETTINGS, progress)
    return reconstruction_figures(targets, predictions, results)


def reconstruction_figures(
    targets: Iterable[CrystalBatch],
    predictions: Iterable[CrystalBatch],
    results: Sequence[Sequence[PairResult]],
) -> dict[str, float]:
    """Summarize match results and errors of reconstructions in one flat dict.

    Args:
        results: match results of all crystals, for each of `SETTINGS`.

    Returns:
        `match_rate`, `rmse` and `crmse` with CDVAE's tolerances, the same with the suffix
        `_default` for pymatgen's, `match_timeouts` (these pairs count as not matched), and the
        metrics of `ReconstructionErrors`.
    """
    errors = ReconstructionErrors(sync_on_compute=False)  # this process has all crystals
    for predicted, target in zip(predictions, targets, strict=True):
        errors.update(predicted, target)
    cdvae, default = (summarize(*each) for each in zip(results, SETTINGS, strict=True))
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


Prepared: TypeAlias = "PreparedCrystals | list[Structure | None]"


def prepare_batches(batches: Iterable[CrystalBatch], matcher: AnyMatcher) -> Prepared:
    """Crystals as the matcher wants them; worth keeping if they are matched more than once."""
    if isinstance(matcher, FastMatcher):
        return PreparedCrystals(list(batches))
    return [structure for batch in batches for structure in to_structures(batch)]


def part_of(crystals: Prepared, indices: Sequence[int]) -> Prepared:
    """Some crystals, with what is known of them."""
    if isinstance(crystals, PreparedCrystals):
        return crystals.part(indices)
    return [crystals[i] for i in indices]


def match_batches(
    targets: Iterable[CrystalBatch],
    predictions: Iterable[CrystalBatch],
    matcher: AnyMatcher,
    settings: Sequence[MatcherSettings] = SETTINGS,
    progress: bool | str = False,
) -> list[list[PairResult]]:
    """Match each prediction with its target: one list of results for each of the settings."""
    return match_prepared(
        prepare_batches(targets, matcher),
        prepare_batches(predictions, matcher),
        matcher,
        settings,
        progress,
    )


def match_prepared(
    targets: Prepared,
    predictions: Prepared,
    matcher: AnyMatcher,
    settings: Sequence[MatcherSettings] = SETTINGS,
    progress: bool | str = False,
) -> list[list[PairResult]]:
    """`match_batches` for what `prepare_batches` gave."""
    return matcher.match(targets, predictions, settings, progress=progress)  # type: ignore[arg-type]


def to_structures(batch: CrystalBatch) -> list[Structure | None]:
    """Convert to structures; None for crystals with non-finite coordinates or cells."""
    finite = batch.lattices.isfinite().flatten(1).all(dim=1)
    finite[batch.batch[~batch.frac_coords.isfinite().all(dim=1)]] = False
    structures = batch.replace(
        frac_coords=batch.frac_coords.nan_to_num(), lattices=batch.lattices.nan_to_num()
    ).to_structure()
    return [s if ok else None for s, ok in zip(structures, finite.tolist(), strict=True)]
