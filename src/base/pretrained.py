"""Load and save a LightningModule: checkpoints, folders to share, the Hugging Face Hub.

A folder holds `model.safetensors`, `config.json` and a model card. Neither a folder nor a
checkpoint can run foreign code: a config may name only classes of this project and of torch.optim.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self, TypeVar

import torch
from lightning import LightningModule
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from src.base.hub import LIBRARY, download_file, upload_folder, version
from src.data.parsing import ReadOptions
from src.utils.checkpoints import CheckpointError, load_checkpoint
from src.utils.config import build, describe
from src.utils.errors import UserError
from src.utils.output import new_folder
from src.utils.strict_json import not_finite

M = TypeVar("M", bound="PretrainedModule")

# Whose classes a config from a file may name.
TRUSTED_MODULES = ("src", "torch.optim")

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


class PretrainedModule(LightningModule):
    """A module that checkpoints and folders rebuild without being told how.

    A subclass keeps each of its constructor's arguments as an attribute of the same name and ends
    its constructor with `save_config`.
    """

    networks: ClassVar[tuple[str, ...]] = ()
    """The constructor's arguments that are networks, each an `nn.Module` or its config."""

    legacy_arguments: ClassVar[Mapping[str, Any]] = {}
    """Values of constructor arguments for checkpoints that are older than the argument."""

    title: ClassVar[str] = "A model of crystals"
    tags: ClassVar[tuple[str, ...]] = ()
    """Of the model card; see also `card_rows`."""

    # what it was trained on, as `CrystalDataset.census` counts it; kept in checkpoints
    training_set: dict[str, Any] | None = None

    # how the training crystals were read (the fields of `ReadOptions`); kept in checkpoints, except
    # in old ones
    read_options: dict[str, Any] | None = None

    def save_config(self) -> None:
        """Keep the constructor's arguments, as plain types, for the files."""
        config = describe(self)
        del config["_target_"]
        self.save_hyperparameters(config)

    def card_rows(self) -> list[tuple[str, str]]:
        """Rows of the table in the model card, each a name and a value."""
        return []

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        strict: bool = True,
        weights_only: bool = True,
        **overrides: Any,
    ) -> Self:
        """The module of a checkpoint, in evaluation mode.

        Args:
            checkpoint_path: a `.ckpt` that this class wrote.
            map_location: as for `torch.load`; None: the CPU. The module is on that device (of a
                dict or callable that names several, on the one of the first weight).
            strict: whether the weights must fit exactly.
            weights_only: accepted and ignored: code from the file is never run.
            overrides: constructor arguments that replace those in the checkpoint.

        Raises:
            FileNotFoundError: if there is no such file.
            CheckpointError: if it is not a checkpoint of this class; it says why.
            UserError: if there is no such device.
        """
        _check_device(map_location)
        content = load_checkpoint(checkpoint_path, map_location or "cpu")
        return restore(cls, content, checkpoint_path, strict, overrides)

    def save_pretrained(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write a folder to pass on, whole or not at all.

        It holds `model.safetensors`, `config.json` (all that rebuilds the module,
        `training_set` and `read_options`) and a model card, `README.md`.

        Args:
            folder: a new one.
            overwrite: replace such a folder.

        Raises:
            OutputError: if there is something at `folder` that is not to be replaced.
            CheckpointError: if a weight or a number among the settings is not finite.
        """
        weights = {name: weight.detach().contiguous() for name, weight in self.state_dict().items()}
        for name, weight in weights.items():
            if not weight.isfinite().all():
                raise CheckpointError(
                    f"{folder} is not written, since there are NaN or inf in {name}"
                )
        config = {
            "library": LIBRARY,
            "version": version(),
            "hyper_parameters": dict(self.hparams),
            "training_set": self.training_set,
            "read_options": self.read_options,
        }
        if names := not_finite(config):
            raise CheckpointError(
                f"{folder} is not written, since {CONFIG} cannot hold the NaN or inf in "
                f"{', '.join(names)}: use a finite number"
            )
        with new_folder(folder, CONFIG, overwrite) as new:
            (new / WEIGHTS).write_bytes(save(weights, metadata={"format": "pt"}))
            (new / CONFIG).write_text(json.dumps(config, indent=2, allow_nan=False) + "\n")
            (new / CARD).write_text(_card(self))

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        endpoint: str | None = None,
        local_files_only: bool = False,
        map_location: str | torch.device | None = None,
    ) -> Self:
        """The module that `save_pretrained` or `push_to_hub` wrote, in evaluation mode.

        No code is ever run from the files.

        Args:
            source: a folder, or the name of a repository on the Hugging Face hub.
            revision: a branch, tag or commit there.
            cache_dir: where downloads are kept; by default where the hub's client keeps them.
            token: for a private repository; by default that of `hf auth login`.
            endpoint: address of the hub; by default HF_ENDPOINT, or the public one.
            local_files_only: use what was downloaded before, without a connection.
            map_location: the device of the module; None: the CPU.

        Raises:
            CheckpointError: if it cannot be loaded, or is no such module; it says why.
            UserError: if there is no such device.
        """
        _check_device(map_location)
        content = read_pretrained(
            source,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            endpoint=endpoint,
            local_files_only=local_files_only,
        )
        return restore(cls, content, source).to(map_location or "cpu")

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        endpoint: str | None = None,
    ) -> str:
        """Publish what `save_pretrained` writes as a repository on the Hugging Face hub.

        Args:
            repo_id: `owner/name`; it is created if it does not exist.
            private: whether a new repository is private; by default as its owner has set it up.
            revision: an existing branch; by default the main one.
            token, endpoint: as for `from_pretrained`.

        Returns:
            The address of the commit.

        Raises:
            CheckpointError: if the hub refuses or cannot be reached.
        """
        with TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save_pretrained(folder)
            return upload_folder(folder, repo_id, private, revision, token, endpoint)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["training_set"] = self.training_set
        checkpoint["read_options"] = self.read_options

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.training_set = checkpoint.get("training_set")
        self.read_options = checked_options(checkpoint.get("read_options"))


def restore(
    cls: type[M],
    content: Mapping[str, Any],
    source: str | Path,
    strict: bool = True,
    overrides: Mapping[str, Any] | None = None,
) -> M:
    """The module that a checkpoint's content describes, in evaluation mode.

    It is on the device of the (first of the) weights.

    Args:
        cls: its class.
        content: `state_dict`, `hyper_parameters` and, if it was trained, `training_set` and
            `read_options`.
        source: where the content is from, for messages.
        strict: whether the weights must fit exactly.
        overrides: constructor arguments that replace those in `hyper_parameters`.

    Raises:
        CheckpointError: if these do not make such a module; it says why.
    """

    def make() -> M:
        networks = {
            part: build(arguments[part], nn.Module, allow=TRUSTED_MODULES)
            for part in cls.networks
            if not isinstance(arguments[part], nn.Module)
        }
        return cls(**{**arguments, **networks})

    try:
        stored = content["hyper_parameters"]
        arguments = {**cls.legacy_arguments, **stored, **(overrides or {})}
        weights = content["state_dict"]
        # A config can ask for a network larger than any memory. So build it on the meta device
        # first, which takes no memory, and see whether the weights fit. Since each layer takes
        # time even there, compare the number of layers with the number of weights before that.
        for part in cls.networks:
            config = arguments[part]
            if isinstance(config, Mapping) and config.get("num_layers", 0) > len(weights):
                raise ValueError(f"{part}.num_layers={config['num_layers']} but fewer weights")
        with torch.device("meta"):
            module = make()
            # a copy, since torch notes in the metadata of `weights` that they are to be assigned
            module.load_state_dict(dict(weights), strict=strict, assign=True)
        device = next((weight.device for weight in weights.values()), torch.device("cpu"))
        if device.type != "meta":
            module = make()
            module.load_state_dict(weights, strict=strict)
        module.on_load_checkpoint(dict(content))
    except Exception as error:  # wrong arguments fail in any way that there is
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise CheckpointError(
            f"{source} is not a checkpoint of {cls.__name__}: {reason}"
        ) from error
    return module.eval() if device == module.device else module.eval().to(device)


def _check_device(device: Any) -> None:
    """Refuse a device that is not there, where one is named."""
    if isinstance(device, (str, torch.device)):
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # the latter in a torch without CUDA
            raise UserError(f"map_location={str(device)!r} cannot be used: {error}") from error


def read_pretrained(source: str | Path, **download: Any) -> dict[str, Any]:
    """The content of what `save_pretrained` wrote, as `restore` takes it.

    Args:
        source: a folder, or the name of a repository on the hub.
        download: keyword arguments of `huggingface_hub.hf_hub_download`, for the latter.

    Raises:
        CheckpointError: if it cannot be had or read; it says why.
    """
    folder = Path(source).expanduser()
    if folder.is_file():
        raise CheckpointError(f"{source} is a file: load_from_checkpoint reads checkpoints")
    try:
        if folder.is_dir():
            paths = [folder / CONFIG, folder / WEIGHTS]
        else:
            paths = [download_file(str(source), name, **download) for name in (CONFIG, WEIGHTS)]
        config = json.loads(paths[0].read_text(encoding="utf-8"))
        if not isinstance(config, dict) or config.get("library") != LIBRARY:
            raise CheckpointError(f"{source} is not of {LIBRARY}: its {CONFIG} does not say so")
        return {**config, "state_dict": load_file(paths[1])}
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{source} holds no model: {error}") from error
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{source} is damaged or holds no model: {error}") from error


def checked_options(given: Any) -> dict[str, Any] | None:
    """`read_options` of a file, which may hold anything.

    Raises:
        UserError, TypeError: if these make no `ReadOptions`.
    """
    if given is None:
        return None
    options = asdict(ReadOptions(**given))
    for name, value in options.items():
        if name != "cell" and value is not None and type(value) not in (int, float):
            raise UserError(f"read_options: {name} is {value!r}, which is no number")
    return options


def _card(module: PretrainedModule) -> str:
    """The model card, in the form that the hub reads."""
    trained = "not recorded"
    if module.training_set:
        trained = (
            f"{module.training_set['num_crystals']:,} crystals of up to "
            f"{max(map(int, module.training_set['num_atoms']))} atoms and "
            f"{len(module.training_set['elements'])} elements"
        )
    size = sum(parameter.numel() for parameter in module.parameters())
    rows = [*module.card_rows(), ("parameters", f"{size:,}"), ("trained on", trained)]
    if module.read_options:
        rows.append(("cells", module.read_options["cell"]))
    tags = "\n".join(f"- {tag}" for tag in ("crystals", "materials-science", *module.tags))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    name, package = type(module).__name__, type(module).__module__.rpartition(".")[0]
    return f"""---
library_name: {LIBRARY}
tags:
{tags}
---

# {module.title}

| | |
|---|---|
{table}

```python
from {package} import {name}

module = {name}.from_pretrained("path of this folder, or name of this repository")
```

Written by {LIBRARY} {version()}. `{CONFIG}` has all of its settings.
"""
