"""Crystals, from file to batch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from src.data.datamodule import DataModule
    from src.data.readers import DataError
    from src.data.schema import CrystalBatch

__all__ = ["CrystalBatch", "DataError", "DataModule"]

_PLACES = {"CrystalBatch": "schema", "DataError": "readers", "DataModule": "datamodule"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for.

    So a worker that reads crystals, or a command that fetches them, waits for neither torch nor
    Lightning.
    """
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
