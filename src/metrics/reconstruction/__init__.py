"""Measure how close reconstructed crystals are to the originals."""

from typing import TYPE_CHECKING

from src.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from src.metrics.reconstruction.errors import ReconstructionErrors
    from src.metrics.reconstruction.evaluate import evaluate_reconstruction

__all__ = ["ReconstructionErrors", "evaluate_reconstruction"]

__getattr__ = lazy_attributes(
    __name__, {"ReconstructionErrors": "errors", "evaluate_reconstruction": "evaluate"}
)
