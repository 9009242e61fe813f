"""The implementation of each command, one module per command, and shared code.

The scripts in `src` compose a config with Hydra and call one of these modules.
"""

from typing import TYPE_CHECKING

from src.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from src.commands.trained_model import load_data, load_vae, run_folder

__all__ = ["load_data", "load_vae", "run_folder"]

__getattr__ = lazy_attributes(__name__, dict.fromkeys(__all__, "trained_model"))
