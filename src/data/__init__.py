"""Crystals from files to batches."""

from typing import TYPE_CHECKING

from src.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from src.data.datamodule import DataModule
    from src.data.readers import DataError
    from src.data.schema import CrystalBatch

__all__ = ["CrystalBatch", "DataError", "DataModule"]

__getattr__ = lazy_attributes(
    __name__, {"CrystalBatch": "schema", "DataError": "readers", "DataModule": "datamodule"}
)
