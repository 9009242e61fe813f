"""Read and write checkpoints without ever executing anything in them."""

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
from src.utils.included import find_included

log = logging.getLogger(__name__)

LAST = "last.ckpt"  # the checkpoint that a run resumes from
# settings that determine the weights or what is computed with them
_OF_NETWORKS = ("encoder", "decoder", "latent_dim", "atom_type_predict", "quant_bias")


class CheckpointError(UserError):
    """A file that cannot be used as a checkpoint; the message names it and says why."""


class NoCheckpointError(CheckpointError, FileNotFoundError):
    """The checkpoint file does not exist."""


def load_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint that contains only tensors and plain types.

    Raises:
        FileNotFoundError: if the file does not exist.
        CheckpointError: if it is a folder, is damaged, or contains any other types.
    """
    path = find_included(path)
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder: give the path of the .ckpt in it, or use from_pretrained for a "
            "folder from save_pretrained"
        )
    if not path.is_file():
        raise NoCheckpointError(f"there is no checkpoint {path}")
    try:
        refuse_compressed(path)
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        # without PyTorch's own message, which suggests loading it unsafely
        raise CheckpointError(
            f"{path} cannot be opened safely: it is not a checkpoint, is damaged, or contains more "
            "than tensors and plain types, which could run code when loaded"
        ) from error
    except Exception as error:  # torch can raise anything for a damaged file
        raise CheckpointError(f"{path} is damaged or not a checkpoint: {error}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} is not a checkpoint: it has no state_dict")
    return checkpoint


def check_weights(
    module: LightningModule, content: Mapping[str, Any], path: str | Path, warn: bool = True
) -> None:
    """Check that the weights in a checkpoint fit a module.

    Args:
        module: the module.
        content: of the checkpoint.
        path: of the checkpoint, for messages.
        warn: if network settings differ that do not affect the shapes of the weights, such as the
            number of attention heads, name them in a warning.

    Raises:
        CheckpointError: if weights are missing, superfluous or of another shape; the message names
            the settings that differ, if the checkpoint records them.
    """
    ours, theirs = module.state_dict(), content["state_dict"]
    if not isinstance(theirs, Mapping):
        raise CheckpointError(f"{path} is not a checkpoint: its state_dict is not a dict")
    faults = [f"{name} is missing" for name in ours if name not in theirs]
    faults += [f"{name} is unexpected" for name in theirs if name not in ours]
    faults += [
        f"{name} is {_shape(theirs[name])} in the checkpoint and {_shape(weight)} here"
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
            f"{path} has the weights of a different model. "
            + (f"Settings (checkpoint / here): {named}. " if named else "")
            + f"Mismatch: {faults[0]}{more}. Use the settings that it was trained with"
        )
    if named and warn:
        log.warning("%s was trained with other settings (checkpoint / here): %s", path, named)


def _shape(weight: Any) -> tuple[int, ...] | None:
    return tuple(weight.shape) if isinstance(weight, torch.Tensor) else None


def refuse_compressed(path: Path) -> None:
    """Reject a zip archive that unpacks to more bytes than it has; torch never writes one.

    Raises:
        CheckpointError: for such an archive.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise CheckpointError(f"{path} is not a checkpoint: it is compressed")


def save_checkpoint(module: LightningModule, path: str | Path) -> None:
    """Write a module's weights and config as a checkpoint, atomically."""
    path = Path(path)
    content = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "pytorch-lightning_version": lightning.__version__,
    }
    module.on_save_checkpoint(content)
    write_checkpoint(content, path)


def write_checkpoint(content: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint atomically: an existing one is replaced only once the new one is complete.

    Raises:
        CheckpointError: if a weight is not finite, or the file cannot be written (a full disk).
    """
    path = Path(path)
    for name, weight in content["state_dict"].items():
        if not weight.isfinite().all():
            raise CheckpointError(f"{path} was not written, because {name} contains NaN or inf")
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
            f"{path} cannot be written ({error}); an existing file there is unchanged"
        ) from error


class AtomicCheckpointIO(TorchCheckpointIO):
    """Makes Lightning write its checkpoints with `write_checkpoint`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        write_checkpoint(checkpoint, path)


def find_last(folder: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Find the checkpoint in `folder` to resume from: its path and content, or None.

    This is `last.ckpt` or, if that is missing or damaged, the newest usable checkpoint. A warning
    names damaged ones.

    Raises:
        CheckpointError: if there are checkpoints but none of them can be used.
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
            f"none of the checkpoints in {folder} can be resumed: to start a new run, choose "
            "another folder or remove them"
        )
    return None


def load_resumable(path: str | Path) -> dict[str, Any]:
    """Like `load_checkpoint`, for a checkpoint that also contains the state of a run.

    Raises:
        FileNotFoundError, CheckpointError: as there, or if it contains only weights.
    """
    checkpoint = load_checkpoint(path)
    if missing := {"loops", "optimizer_states", "global_step"} - set(checkpoint):
        raise CheckpointError(
            f"{path} contains weights but not the state of a run ({', '.join(sorted(missing))} "
            "missing), so it cannot be resumed: start from its weights with ckpt_path"
        )
    return checkpoint
