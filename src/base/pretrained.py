"""Load and save a LightningModule: checkpoints, folders to share, the Hugging Face Hub.

A folder holds `model.safetensors`, `config.json` and a model card. Neither a folder nor a
checkpoint can run code of its own: a config may name only classes of this project and torch.optim.
"""

import json
from collections.abc import Iterator, Mapping
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

# Modules whose classes a config from a file may name.
TRUSTED_MODULES = ("src", "torch.optim")

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


class PretrainedModule(LightningModule):
    """A module that can be rebuilt from a checkpoint or folder alone.

    A subclass stores each constructor argument as an attribute of the same name and calls
    `save_config` at the end of its constructor.
    """

    networks: ClassVar[tuple[str, ...]] = ()
    """The constructor arguments that are networks, each an `nn.Module` or its config."""
    given: ClassVar[tuple[str, ...]] = ()
    """Those that are not trained: their weights are of another checkpoint."""

    legacy_arguments: ClassVar[Mapping[str, Any]] = {}
    """Values of constructor arguments that older checkpoints lack."""

    title: ClassVar[str] = "A model of crystals"
    tags: ClassVar[tuple[str, ...]] = ()
    """Title and tags of the model card; see also `card_rows`."""

    # `CrystalDataset.census` of the training set; saved in checkpoints
    training_set: dict[str, Any] | None = None

    # how the training crystals were read (the fields of `ReadOptions`); saved in checkpoints, but
    # missing from old ones
    read_options: dict[str, Any] | None = None

    def save_config(self) -> None:
        """Store the constructor arguments, as plain types, for saving."""
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
        """Load a module from a checkpoint, in evaluation mode.

        Args:
            checkpoint_path: a `.ckpt` that this class wrote.
            map_location: as for `torch.load`; None: the CPU. The module is moved to that device. If
                a dict or callable names several, it is moved to that of the first weight.
            strict: whether the weights must fit exactly.
            weights_only: accepted and ignored: code from the file is never run.
            overrides: constructor arguments that replace those in the checkpoint.

        Raises:
            FileNotFoundError: if the file does not exist.
            CheckpointError: if it is not a checkpoint of this class; the message says why.
            UserError: if the device is not available.
        """
        _check_device(map_location)
        content = load_checkpoint(checkpoint_path, map_location or "cpu")
        return restore(cls, content, checkpoint_path, strict, overrides)

    def save_pretrained(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write a folder to share the model. It appears only once it is complete.

        It holds `model.safetensors`, `config.json` (everything needed to rebuild the module,
        `training_set` and `read_options`) and a model card, `README.md`.

        Args:
            folder: the folder to create.
            overwrite: replace an existing folder that this method wrote.

        Raises:
            OutputError: if there is something at `folder` that is not to be replaced.
            CheckpointError: if a weight or a number among the settings is not finite.
        """
        weights = {name: weight.detach().contiguous() for name, weight in self.state_dict().items()}
        for name, weight in weights.items():
            if not weight.isfinite().all():
                raise CheckpointError(
                    f"{folder} was not written, because {name} contains NaN or inf"
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
        """Load a module that `save_pretrained` or `push_to_hub` wrote, in evaluation mode.

        Code from the files is never run.

        Args:
            source: a folder, or the name of a repository on the Hugging Face Hub.
            revision: a branch, tag or commit of the repository.
            cache_dir: the folder for downloads; by default the cache of `huggingface_hub`.
            token: for a private repository; by default that of `hf auth login`.
            endpoint: URL of the Hub; by default HF_ENDPOINT, or the public one.
            local_files_only: use only what was downloaded before, without a connection.
            map_location: the device of the module; None: the CPU.

        Raises:
            CheckpointError: if it cannot be loaded, or is not such a module; the message says why.
            UserError: if the device is not available.
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
        """Publish what `save_pretrained` writes as a repository on the Hugging Face Hub.

        Args:
            repo_id: `owner/name`; it is created if it does not exist.
            private: whether a new repository is private; None: the default of its owner.
            revision: an existing branch; by default `main`.
            token, endpoint: as for `from_pretrained`.

        Returns:
            The URL of the commit.

        Raises:
            CheckpointError: if the Hub refuses the upload or cannot be reached.
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
    """Build a module from the content of a checkpoint, in evaluation mode.

    It is on the device of the first weight.

    Args:
        cls: the class of the module.
        content: `state_dict`, `hyper_parameters` and, if it was trained, `training_set` and
            `read_options`.
        source: where the content comes from, for messages.
        strict: whether the weights must fit exactly.
        overrides: constructor arguments that replace those in `hyper_parameters`.

    Raises:
        CheckpointError: if the content does not describe such a module; the message says why.
    """

    def make() -> M:
        networks = {
            part: build(arguments[part], nn.Module, allow=TRUSTED_MODULES)
            for part in cls.networks
            if arguments[part] is not None and not isinstance(arguments[part], nn.Module)
        }
        return cls(**{**arguments, **networks})

    try:
        stored = content["hyper_parameters"]
        arguments = {**cls.legacy_arguments, **stored, **(overrides or {})}
        weights = content["state_dict"]
        # A config can ask for a network that does not fit in memory. So first build it on the meta
        # device, which takes no memory, and check that the weights fit. Since each layer takes time
        # even there, compare the number of layers with the number of weights before that.
        for part in cls.networks:
            for layers in _layer_counts(arguments[part]):
                if layers > len(weights):
                    raise ValueError(f"{part} has num_layers={layers}, but fewer weights")
        with torch.device("meta"):
            module = make()
            # a copy, since torch records in the metadata of `weights` that they are to be assigned
            module.load_state_dict(dict(weights), strict=strict, assign=True)
        device = next((weight.device for weight in weights.values()), torch.device("cpu"))
        if device.type != "meta":
            module = make()
            module.load_state_dict(weights, strict=strict)
        module.on_load_checkpoint(dict(content))
    except Exception as error:  # wrong arguments can raise anything
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise CheckpointError(
            f"{source} is not a checkpoint of {cls.__name__}: {reason}"
        ) from error
    return module.eval() if device == module.device else module.eval().to(device)


def _layer_counts(config: Any) -> Iterator[int]:
    """The numbers of layers that a config asks for, in networks within networks too."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            if name == "num_layers":
                yield value
            else:
                yield from _layer_counts(value)


def _check_device(device: Any) -> None:
    """Raise an error if a device is named but not available."""
    if isinstance(device, (str, torch.device)):
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
            raise UserError(f"map_location={str(device)!r} cannot be used: {error}") from error


def read_pretrained(source: str | Path, **download: Any) -> dict[str, Any]:
    """Read what `save_pretrained` wrote, as `content` for `restore`.

    Args:
        source: a folder, or the name of a repository on the Hub.
        download: keyword arguments of `huggingface_hub.hf_hub_download`, for a repository.

    Raises:
        CheckpointError: if it cannot be downloaded or read; the message says why.
    """
    folder = Path(source).expanduser()
    if folder.is_file():
        raise CheckpointError(f"{source} is a file: use load_from_checkpoint for a checkpoint")
    try:
        if folder.is_dir():
            paths = [folder / CONFIG, folder / WEIGHTS]
        else:
            paths = [download_file(str(source), name, **download) for name in (CONFIG, WEIGHTS)]
        config = json.loads(paths[0].read_text(encoding="utf-8"))
        if not isinstance(config, dict) or config.get("library") != LIBRARY:
            raise CheckpointError(f"{source} was not written by {LIBRARY}; see its {CONFIG}")
        return {**config, "state_dict": load_file(paths[1])}
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{source} does not contain a model: {error}") from error
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{source} is damaged or not a model: {error}") from error


def checked_options(given: Any) -> dict[str, Any] | None:
    """Check `read_options` from a file, which may contain anything.

    Raises:
        UserError, TypeError: if they are not valid `ReadOptions`.
    """
    if given is None:
        return None
    options = asdict(ReadOptions(**given))
    for name, value in options.items():
        if name != "cell" and value is not None and type(value) not in (int, float):
            raise UserError(f"read_options: {name} is {value!r}, which is not a number")
    return options


def _card(module: PretrainedModule) -> str:
    """The model card, in the format of the Hugging Face Hub."""
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

module = {name}.from_pretrained("path of this folder or name of this repository")
```

Written by {LIBRARY} {version()}. `{CONFIG}` has all of its settings.
"""
