"""Checkpoints of Chemeleon2 as modules of ours, with nothing in them executed.

Those files are pickles of whole networks. Here every name in the pickle stands for an inert record
that keeps what it is given, but for the few that build tensors, which are written anew below. What
the records kept (heads, norm order, activation) and the shapes of the weights say how to build the
same network from our classes.
"""

import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.utils.checkpoints import CheckpointError
from src.vae_module.decoders.transformer import TransformerDecoder
from src.vae_module.encoders.transformer import TransformerEncoder
from src.vae_module.vae_module import LOSS_WEIGHTS, VAEModule

# Names of torch's typed storages, and what they hold.
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Record:
    """Stands for any object of a foreign class: keeps its state and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.state: dict[str, Any] = {}
        self.items: dict[Any, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {"state": state}

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def __call__(self, *args: Any, **kwargs: Any) -> "Record":
        return Record()

    def append(self, value: Any) -> None:
        self.items[len(self.items)] = value

    def extend(self, values: Any) -> None:
        for value in values:
            self.append(value)

    def add(self, value: Any) -> None:
        self.append(value)

    def __getitem__(self, path: str) -> Any:
        """What is found by a dotted path of submodules, attributes and config keys, else None."""
        found: Any = self
        for name in path.split("."):
            places: list[Any] = [found.state] if isinstance(found, Record) else []
            if isinstance(found, Record):
                places += [found.state.get(key) for key in ("_modules", "_content")]
            found = next((p[name] for p in places if isinstance(p, dict) and name in p), None)
        is_node = isinstance(found, Record) and "_val" in found.state  # a leaf of OmegaConf
        return found.state["_val"] if is_node else found


class InertUnpickler(pickle.Unpickler):
    """Unpickles tensors and plain types; every other class becomes a kind of `Record`."""

    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(archive.open(f"{prefix}data.pkl"))
        self.archive, self.prefix = archive, prefix

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data,
        }
        return known.get((module, name)) or type(name, (Record,), {"__module__": module})

    def persistent_load(self, pid: Any) -> Tensor:
        try:
            _, kind, key, _, _ = pid
            dtype = STORAGES[kind.__name__]
            content = self.archive.read(f"{self.prefix}data/{key}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise pickle.UnpicklingError(f"unknown storage {pid!r}") from error
        return torch.frombuffer(bytearray(content), dtype=dtype)


def _rebuild_tensor(storage: Tensor, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    if (
        math.prod(size) > storage.numel()
    ):  # as_strided checks all but repetition, which costs memory
        raise pickle.UnpicklingError(f"a tensor of {tuple(size)} in {storage.numel()} numbers")
    return storage.as_strided(tuple(size), tuple(stride), offset).clone()


def read_foreign_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a pickled checkpoint, foreign objects as `Record`.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is no zip file as torch writes it, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise CheckpointError(f"{path} is no checkpoint: no data.pkl in it")
            checkpoint = InertUnpickler(archive, pickles[0].removesuffix("data.pkl")).load()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle fails in any way that there is
        raise CheckpointError(f"{path} is damaged or no checkpoint: {error}") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise CheckpointError(f"{path} is no checkpoint: it has no state_dict")
    return checkpoint


def import_chemeleon2(path: str | Path) -> VAEModule:
    """The VAE of a Chemeleon2 checkpoint as a `VAEModule`, in evaluation mode.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is no such checkpoint, or of a form that our classes do not have.
    """
    checkpoint = read_foreign_checkpoint(path)
    weights, parameters = checkpoint["state_dict"], checkpoint.get("hyper_parameters", {})
    try:
        predicts = "decoder.atom_types_head.weight" in weights
        encoder = TransformerEncoder(
            **_sizes(weights, parameters, "encoder"),
            max_num_elements=weights["encoder.atom_type_embedder.weight"].shape[0],
            coords_input="raw",
            lattice_input="matrix",
            index_embedding=True,
        )
        decoder = TransformerDecoder(
            **_sizes(weights, parameters, "decoder"),
            max_num_elements=encoder.max_num_elements,
            atom_type_predict=predicts,
            atom_type_input=False,
            coords_output="raw",
            index_embedding=True,
        )
        vae = VAEModule(
            encoder,
            decoder,
            latent_dim=weights["post_quant_conv.weight"].shape[1],
            loss_weights=_loss_weights(parameters),
            quant_bias="quant_conv.bias" in weights,
            rotate=True,
        )
        vae.load_state_dict(weights)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a VAE of Chemeleon2 that fits: {error}") from error
    return vae.eval()


def _sizes(weights: dict[str, Tensor], parameters: Any, part: str) -> dict[str, Any]:
    """Arguments of encoder or decoder, from shapes where these tell, else from the record."""
    prefix = f"{part}.transformer.layers."
    first = f"{prefix}0."
    record = parameters[part]
    layer = record["transformer.layers.0"]
    if layer["norm1"].state.get("eps") != 1e-5:
        raise ValueError(f"{part} has LayerNorms with eps {layer['norm1'].state.get('eps')}")
    return {
        "d_model": weights[f"{first}linear1.weight"].shape[1],
        "nhead": layer["self_attn"].state["num_heads"],
        "num_layers": len({n.split(".")[3] for n in weights if n.startswith(prefix)}),
        "dim_feedforward": weights[f"{first}linear1.weight"].shape[0],
        "dropout": layer["dropout"].state["p"],
        "activation": _activation(layer),
        "norm_first": layer.state["norm_first"],
        "bias": f"{first}linear1.bias" in weights,
        "final_norm": f"{part}.transformer.norm.weight" in weights,
    }


def _activation(layer: Record) -> str:
    """Of a `torch.nn.TransformerEncoderLayer`.

    A tanh-approximated GELU counts as the exact one, which that layer computes when it runs its
    fused kernel, in evaluation mode; the two differ by less than 1e-3.
    """
    activation = layer["activation"]
    name = activation.__name__ if isinstance(activation, type) else type(activation).__name__
    try:
        return {"GELU": "gelu", "gelu": "gelu", "ReLU": "relu", "relu": "relu"}[name]
    except KeyError:
        raise ValueError(f"activation {name}") from None


def _loss_weights(parameters: Any) -> dict[str, float]:
    record = parameters.get("loss_weights")
    values = {name: record[name] for name in LOSS_WEIGHTS} if isinstance(record, Record) else {}
    return {name: float(value) for name, value in values.items() if value is not None}
