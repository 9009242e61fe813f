"""Checkpoints are opened and written here; nothing in them is ever executed."""

import os
import pickle
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning import LightningModule


class CheckpointError(ValueError):
    """A file that cannot be used as a checkpoint; the message names it and says why."""


def load_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The content of a checkpoint of plain tensors and plain types.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is damaged, or holds anything but plain types.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path} holds more than plain tensors and types, or is damaged, and is not opened, "
            f"since that could run code from it: {reason}"
        ) from error
    except Exception as error:  # in a damaged file torch stumbles over almost anything
        raise CheckpointError(f"{path} is damaged or no checkpoint: {error}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} is no checkpoint: it has no state_dict")
    return checkpoint


def save_checkpoint(module: LightningModule, path: str | Path) -> None:
    """Write a module's weights and config as a checkpoint, whole or not at all."""
    path = Path(path)
    content = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "pytorch-lightning_version": lightning.__version__,
    }
    partial = path.with_name(f"{path.name}.partial")
    torch.save(content, partial)
    os.replace(partial, path)
