"""Modules from and to files that are passed on: checkpoints, folders, the Hugging Face hub.

A folder holds `model.safetensors`, `config.json` and a model card. Neither it nor a checkpoint can
make code run that is not ours, since a config may name only our classes and torch's optimizers.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from src.utils.checkpoints import CheckpointError
from src.utils.config import build
from src.utils.output import new_folder

if TYPE_CHECKING:
    from src.vae_module.vae_module import VAEModule

V = TypeVar("V", bound="VAEModule")

# Whose classes a config from a file may name.
TRUSTED_MODULES = ("src", "torch.optim")

LIBRARY = "xtal-latent"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


def restore(
    cls: type[V],
    content: Mapping[str, Any],
    source: str | Path,
    strict: bool = True,
    overrides: Mapping[str, Any] | None = None,
) -> V:
    """The module that a checkpoint's content describes, in evaluation mode.

    Args:
        cls: its class.
        content: `state_dict`, `hyper_parameters` and, if it was trained, `training_set`.
        source: where the content is from, for messages.
        strict: whether the weights must fit exactly.
        overrides: constructor arguments that replace those in `hyper_parameters`.

    Raises:
        CheckpointError: if these do not make such a module; it says why.
    """

    def make() -> V:
        networks = {
            part: build(arguments[part], nn.Module, allow=TRUSTED_MODULES)
            for part in ("encoder", "decoder")
            if not isinstance(arguments[part], nn.Module)
        }
        return cls(**{**arguments, **networks})

    try:
        # checkpoints that do not name them were trained with squared errors
        squared = {"coords_delta": None, "lengths_delta": None}
        arguments = {**squared, **content["hyper_parameters"], **(overrides or {})}
        weights = content["state_dict"]
        # A config can ask for a network that no memory holds. Without memory it shows whether the
        # weights are there; layers are counted first, since each takes time even so.
        for part in ("encoder", "decoder"):
            config = arguments[part]
            if isinstance(config, Mapping) and config.get("num_layers", 0) > len(weights):
                raise ValueError(f"{part}.num_layers={config['num_layers']} but fewer weights")
        with torch.device("meta"):
            # a copy, since torch notes in the metadata of `weights` that they are to be assigned
            make().load_state_dict(dict(weights), strict=strict, assign=True)
        module = make()
        module.load_state_dict(weights, strict=strict)
        module.on_load_checkpoint(dict(content))
    except Exception as error:  # wrong arguments fail in any way that there is
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise CheckpointError(
            f"{source} is not a checkpoint of {cls.__name__}: {reason}"
        ) from error
    return module.eval()


# Folders


def save_pretrained(vae: "VAEModule", folder: str | Path, overwrite: bool = False) -> None:
    """See `VAEModule.save_pretrained`."""
    weights = {name: weight.detach().contiguous() for name, weight in vae.state_dict().items()}
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise CheckpointError(f"{folder} is not written, since there are NaN or inf in {name}")
    config = {
        "library": LIBRARY,
        "version": _version(),
        "hyper_parameters": dict(vae.hparams),
        "training_set": vae.training_set,
    }
    with new_folder(folder, CONFIG, overwrite) as new:
        (new / WEIGHTS).write_bytes(save(weights, metadata={"format": "pt"}))
        (new / CONFIG).write_text(json.dumps(config, indent=2, allow_nan=False) + "\n")
        (new / CARD).write_text(_card(vae))


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
            paths = [_download(str(source), name, **download) for name in (CONFIG, WEIGHTS)]
        config = json.loads(paths[0].read_text(encoding="utf-8"))
        if not isinstance(config, dict) or config.get("library") != LIBRARY:
            raise CheckpointError(f"{source} is not of {LIBRARY}: its {CONFIG} does not say so")
        return {**config, "state_dict": load_file(paths[1])}
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{source} holds no VAE: {error}") from error
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{source} is damaged or holds no VAE: {error}") from error


# The hub


def push_to_hub(
    vae: "VAEModule",
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> str:
    """See `VAEModule.push_to_hub`."""
    api = HfApi(endpoint=endpoint, token=token, library_name=LIBRARY, library_version=_version())
    with TemporaryDirectory() as temporary, _hub_errors(repo_id, revision):
        folder = Path(temporary) / "vae"
        save_pretrained(vae, folder)
        api.create_repo(repo_id, private=private, exist_ok=True)
        return api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision).commit_url


def _download(repo_id: str, name: str, revision: str | None = None, **download: Any) -> Path:
    with _hub_errors(repo_id, revision, name):
        return Path(
            hf_hub_download(
                repo_id,
                name,
                revision=revision,
                library_name=LIBRARY,
                library_version=_version(),
                **download,
            )
        )


@contextmanager
def _hub_errors(repo_id: str, revision: str | None, name: str = "") -> Iterator[None]:
    """Errors of the hub's client as ours."""
    try:
        yield
    except HFValidationError as error:
        raise CheckpointError(
            f"there is no folder {repo_id}, and the hub has no such names"
        ) from error
    except RepositoryNotFoundError as error:  # which a gated one is, too
        raise CheckpointError(
            f"there is no folder {repo_id}, and no repository of that name on the hub that may be "
            "read: give the token of somebody who may, or look for a mistake in the name"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{repo_id} has no revision {revision!r}") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"there is no folder {repo_id}, and the hub cannot be reached to look for it there, "
            "nor has it been downloaded before"
        ) from error
    except EntryNotFoundError as error:
        raise CheckpointError(f"{repo_id} holds no VAE: it has no {name}") from error
    except (HTTPError, OSError) as error:
        raise CheckpointError(
            f"{repo_id} cannot be had from the hub: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _version() -> str:
    try:
        return metadata.version(LIBRARY)
    except metadata.PackageNotFoundError:  # run from a folder without installation
        return "unknown"


def _card(vae: "VAEModule") -> str:
    """The model card, in the form that the hub reads."""
    task = "de novo generation" if vae.atom_type_predict else "crystal structure prediction"
    trained = "not recorded"
    if vae.training_set:
        trained = (
            f"{vae.training_set['num_crystals']:,} crystals of up to "
            f"{max(map(int, vae.training_set['num_atoms']))} atoms and "
            f"{len(vae.training_set['elements'])} elements"
        )
    size = sum(parameter.numel() for parameter in vae.parameters())
    return f"""---
library_name: {LIBRARY}
tags:
- crystals
- materials-science
- variational-autoencoder
---

# A variational autoencoder of crystals

| | |
|---|---|
| for | {task} |
| latent | {vae.latent_dim} numbers per atom |
| parameters | {size:,} |
| trained on | {trained} |

```python
from src.vae_module import VAEModule

vae = VAEModule.from_pretrained("path of this folder, or name of this repository")
```

Written by {LIBRARY} {_version()}. `{CONFIG}` has all of its settings.
"""
