"""What each command does, one module for each, and what they share.

The scripts in `src` compose a config with Hydra and call one of these.
"""

from typing import TYPE_CHECKING

from src.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from src.commands.trained_model import load_data, load_vae, run_folder

__all__ = ["load_data", "load_vae", "run_folder"]

__getattr__ = lazy_attributes(__name__, dict.fromkeys(__all__, "trained_model"))
