"""Evaluate generated crystals against reference crystals."""

from typing import TYPE_CHECKING

from src.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from src.metrics.generation.evaluate import (
        CUTOFFS,
        CoverageCutoffs,
        EvaluationOptions,
        Verdict,
        amd_distances,
        coverage,
        evaluate_generated,
        first_matches,
        wasserstein_distances,
    )

__all__ = [
    "CUTOFFS",
    "CoverageCutoffs",
    "EvaluationOptions",
    "Verdict",
    "amd_distances",
    "coverage",
    "evaluate_generated",
    "first_matches",
    "wasserstein_distances",
]

__getattr__ = lazy_attributes(__name__, dict.fromkeys(__all__, "evaluate"))
