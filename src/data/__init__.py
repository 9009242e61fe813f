"""Crystals, from file to batch."""

from src.data.datamodule import DataModule
from src.data.readers import DataError
from src.data.schema import CrystalBatch

__all__ = ["CrystalBatch", "DataError", "DataModule"]
