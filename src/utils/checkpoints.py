"""Checkpoints are opened and written here; nothing in them is ever executed."""

import io
import logging
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning import LightningModule
from lightning.pytorch.plugins.io import TorchCheckpointIO

from src.utils.config import differences
from src.utils.errors import UserError

log = logging.getLogger(__name__)

LAST = "last.ckpt"  # what a run goes on from
# settings that say which weights there are, or what is computed with them
_OF_NETWORKS = ("encoder", "decoder", "latent_dim", "atom_type_predict", "quant_bias")


class CheckpointError(UserError):
    """A file that cannot be used as a checkpoint; the message names it and says why."""


class NoCheckpointError(CheckpointError, FileNotFoundError):
    """There is no such file."""


def load_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The content of a checkpoint of plain tensors and plain types.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is a folder, damaged, or holds anything but plain types.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder: name the .ckpt in it (from_pretrained reads what save_pretrained "
            "wrote)"
        )
    if not path.is_file():
        raise NoCheckpointError(f"there is no checkpoint {path}")
    try:
        refuse_compressed(path)
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        # without PyTorch's own text, which advises to load it unsafely
        raise CheckpointError(
            f"{path} cannot be opened safely: it is not a checkpoint, is damaged, or holds more "
            "than tensors and plain types, which could run code when loaded"
        ) from error
    except Exception as error:  # in a damaged file torch stumbles over almost anything
        raise CheckpointError(f"{path} is damaged or no checkpoint: {error}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} is no checkpoint: it has no state_dict")
    return checkpoint


def check_weights(module: LightningModule, content: Mapping[str, Any], path: str | Path) -> None:
    """See to it that the weights of a checkpoint are those of a module like this one.

    Settings of the networks that differ without a trace in the weights, such as the number of
    attention heads, are named in a warning.

    Raises:
        CheckpointError: if weights are missing, left over, or of another shape; it names the
            settings that differ, where the checkpoint has them.
    """
    ours, theirs = module.state_dict(), content["state_dict"]
    if not isinstance(theirs, Mapping):
        raise CheckpointError(f"{path} is no checkpoint: its state_dict is none")
    faults = [f"{name} is missing" for name in ours if name not in theirs]
    faults += [f"{name} has no place" for name in theirs if name not in ours]
    faults += [
        f"{name} is {_shape(theirs[name])} there and {_shape(weight)} here"
        for name, weight in ours.items()
        if name in theirs and _shape(theirs[name]) != _shape(weight)
    ]
    hparams = content.get("hyper_parameters")
    differ = {
        name: values
        for name, values in differences(hparams or {}, module.hparams).items()
        if name.partition(".")[0] in _OF_NETWORKS
    }
    named = ", ".join(f"{key} {old} / {new}" for key, (old, new) in differ.items())
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise CheckpointError(
            f"{path} has the weights of another model. "
            + (f"Settings (there / here): {named}. " if named else "")
            + f"Of its weights, {faults[0]}{more}. Use the settings that it was trained with"
        )
    if named:
        log.warning("%s was trained with other settings (there / here): %s", path, named)


def _shape(weight: Any) -> tuple[int, ...] | None:
    return tuple(weight.shape) if isinstance(weight, torch.Tensor) else None


def refuse_compressed(path: Path) -> None:
    """Refuse a zip archive out of which comes more than the file is long; torch writes none.

    Raises:
        CheckpointError: if it is such a one.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise CheckpointError(f"{path} is no checkpoint: it is compressed")


def save_checkpoint(module: LightningModule, path: str | Path) -> None:
    """Write a module's weights and config as a checkpoint, whole or not at all."""
    path = Path(path)
    content = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "pytorch-lightning_version": lightning.__version__,
    }
    module.on_save_checkpoint(content)
    write_checkpoint(content, path)


def write_checkpoint(content: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint, whole or not at all: until it is whole, the one before it stays.

    Raises:
        CheckpointError: if a weight is not finite, or if it cannot be written (a full disk).
    """
    path = Path(path)
    for name, weight in content["state_dict"].items():
        if not weight.isfinite().all():
            raise CheckpointError(f"{path} is not written, since there are NaN or inf in {name}")
    buffer = io.BytesIO()
    torch.save(content, buffer)
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path} cannot be written ({error}); what was there before it is as it was"
        ) from error


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lets Lightning write its checkpoints with `write_checkpoint`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        write_checkpoint(checkpoint, path)


def find_last(folder: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint in `folder` to go on from, and its content; None if there is none at all.

    That is `last.ckpt` or, where it is missing or damaged, the newest that is good; a damaged one
    is named in a warning.

    Raises:
        CheckpointError: if there are checkpoints and none of them can be used.
    """
    paths = sorted(
        Path(folder).glob("*.ckpt"),
        key=lambda path: (path.name == LAST, path.stat().st_mtime_ns),
        reverse=True,
    )
    for path in paths:
        try:
            return path, load_resumable(path)
        except CheckpointError as error:
            log.warning("%s", error)
    if paths:
        raise CheckpointError(
            f"no checkpoint in {folder} can be continued from: to start anew, choose another "
            "folder, or remove them"
        )
    return None


def load_resumable(path: str | Path) -> dict[str, Any]:
    """As `load_checkpoint`, of a checkpoint that holds the state of a run as well.

    Raises:
        FileNotFoundError, CheckpointError: as there, or if it holds weights alone.
    """
    checkpoint = load_checkpoint(path)
    if missing := {"loops", "optimizer_states", "global_step"} - set(checkpoint):
        raise CheckpointError(
            f"{path} holds weights but no run to continue ({', '.join(sorted(missing))} missing): "
            "start from it with ckpt_path"
        )
    return checkpoint
