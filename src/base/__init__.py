"""What every LightningModule of the project inherits: training, checkpoints, the hub."""

from src.base.module import CrystalModule

__all__ = ["CrystalModule"]
