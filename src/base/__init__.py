"""Base classes of the project's LightningModules: training, checkpoints, Hugging Face Hub."""

from src.base.module import CrystalModule

__all__ = ["CrystalModule"]
