"""Load a checkpoint's model and the data it was trained on; shared by several commands."""

import logging
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from yaml import YAMLError

from src.base.pretrained import PretrainedModule, checked_options
from src.data import DataModule
from src.data.parsing import ReadOptions
from src.data.readers import DataError
from src.utils.config import build, to_plain
from src.utils.errors import UserError
from src.utils.included import INCLUDED
from src.vae_module import VAEModule
from src.vae_module.input import log_as_in_training, name_of

log = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)
P = TypeVar("P", bound=PretrainedModule)

SPLITS_FILE = "splits.csv"  # in a run folder: the splits, if the data had none


def load_vae(cfg: DictConfig) -> VAEModule:
    """Load the model of `cfg.ckpt_path` on `cfg.device` (`auto`: a GPU if available).

    If an old checkpoint does not record how its crystals were read, `read_options` is taken from
    the config of its run, if that still exists.

    Raises:
        FileNotFoundError, CheckpointError: if the checkpoint cannot be used; the message says why.
        UserError: if the device is not available.
    """
    return move_to(_load(Path(cfg.ckpt_path)), cfg.device)


def load_shared(cls: type[P], source: str, trained_by: str) -> P:
    """The module in a checkpoint, in a folder written by `save_pretrained`, or on the hub.

    Args:
        cls: its class.
        source: a path, or the name of a repository on the hub.
        trained_by: the command that makes such checkpoints.

    Raises:
        FileNotFoundError: if there is no such checkpoint; the message says how to make one.
        CheckpointError: if it cannot be loaded; the message says why.
    """
    path = Path(source).expanduser()
    if path.is_dir() or not (path.is_file() or source.endswith(".ckpt")):
        return cls.from_pretrained(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no checkpoint {source}: train a model with {trained_by}, which writes "
            "checkpoints/best.ckpt in the folder of the run"
        )
    return cls.load_from_checkpoint(path)


def move_to(module: M, device: str) -> M:
    """The module on a device; `auto`: a GPU if there is one.

    Raises:
        UserError: if there is no such device.
    """
    if device == "auto":
        mps = "mps" if torch.backends.mps.is_available() else "cpu"
        device = "cuda" if torch.cuda.is_available() else mps
    try:
        return module.to(device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        raise UserError(
            f"device={device} cannot be used; choose auto, cpu, cuda or mps: {error}"
        ) from error


def run_folder(checkpoint: str | Path) -> Path:
    """The run folder of a checkpoint if it is still in the run's `checkpoints`; otherwise the
    folder that it is in."""
    folder = Path(checkpoint).expanduser().resolve().parent
    return folder.parent if folder.name == "checkpoints" else folder


def results_folder(checkpoint: str | Path) -> Path:
    """Where results of a checkpoint go by default: to its run folder (see `run_folder`).

    For a checkpoint that comes with a data set of the project, it is a folder in `logs`, since the
    folder of the data is for data.
    """
    folder = run_folder(checkpoint)
    project = Path(os.environ.get("PROJECT_ROOT", ".")).resolve()
    is_included = folder.parent in (project / "data", INCLUDED)
    return project / "logs" / folder.name if is_included else folder


def load_data(cfg: DictConfig, vae: VAEModule | None = None) -> DataModule:
    """The data of `cfg.data`, with unset fields as in the training of `cfg.ckpt_path`.

    How crystals are read (`ReadOptions`) is recorded in the checkpoint. The other fields are in
    `config.yaml` in the run folder (see `run_folder`).

    Args:
        vae: the model of `cfg.ckpt_path`, if it is already loaded.

    Raises:
        DataError: if `cfg.data` does not name a folder and the run has no valid `config.yaml`.
        FileNotFoundError, CheckpointError: if the checkpoint cannot be read.
    """
    given = {
        name: value for name, value in to_plain(cfg.data).items() if value not in (None, "???")
    }
    checkpoint = Path(cfg.ckpt_path)
    trained = (vae or _load(checkpoint)).read_options or {}
    given = {**trained, **given}
    if "data_dir" not in given or "_target_" not in given:
        of_run = _data_of_run(checkpoint)
        if "data_dir" in given:  # may be a different data set than the run's known set
            of_run.pop("download", None)
        else:
            of_run |= kept_splits(run_folder(checkpoint))
        given = {**of_run, **given}
    data = build(given, DataModule, allow=["src.data"])
    options = data.read_options
    done = f"Crystals are converted to their {name_of(options.cell)} cells"
    log_as_in_training(done, options.cell, trained.get("cell"))
    if options.max_num_atoms is not None:
        log.info("Crystals larger than data.max_num_atoms=%d are rejected", options.max_num_atoms)
    return data


def _load(checkpoint: Path) -> VAEModule:
    """Load the model; `read_options` of an old checkpoint are taken from its run's config."""
    vae = VAEModule.load_from_checkpoint(checkpoint)
    if vae.read_options is None:
        try:
            data = _data_of_run(checkpoint)
            names = [field.name for field in fields(ReadOptions)]
            vae.read_options = checked_options({n: data[n] for n in names if n in data})
        except ValueError as error:
            log.debug("the run of %s does not say how crystals were read: %s", checkpoint, error)
    return vae


def kept_splits(folder: Path) -> dict[str, Any]:
    """Data options that restore the splits of the run in `folder`, even if data was added since."""
    path = folder / SPLITS_FILE
    if not path.is_file():
        return {}
    return {"split_by": "file", "split_column": None, "split_file": str(path)}


def warn_of_other_cell(content: Mapping[str, Any], data: DataModule, path: str | Path) -> None:
    """Warn if the weights of a checkpoint were trained on another kind of cell than that of `data`.

    Args:
        content: of the checkpoint, at `path`.
    """
    options = content.get("read_options")
    trained = options.get("cell") if isinstance(options, Mapping) else None
    if trained not in (None, data.read_options.cell):
        log.warning(
            "The weights of %s were trained with data.cell=%s, but this run has data.cell=%s",
            path, trained, data.read_options.cell,
        )  # fmt: skip


def _data_of_run(checkpoint: Path) -> dict[str, Any]:
    path = run_folder(checkpoint) / "config.yaml"
    if not path.is_file():
        raise DataError(
            f"{checkpoint} is not in a run folder (there is no {path}), so specify the data: "
            "data=prototypes, or data=default data.data_dir=FOLDER"
        )
    try:
        data = to_plain(OmegaConf.load(path).data)
    except (YAMLError, OmegaConfBaseException) as error:
        raise DataError(f"{path} is not the config of a run: {error}") from error
    if not isinstance(data, dict):
        raise DataError(f"{path} is not the config of a run: its data are {data!r}")
    if "niggli" in data:  # the option before there were other cells
        data["cell"] = "niggli" if data.pop("niggli") else "as_given"
    return data
