"""Checkpoints of Chemeleon2 as modules of ours, with nothing in them executed.

Those files are pickles of whole networks. Here every name in the pickle stands for an inert record
that keeps what it is given, but for the few that build tensors, which are written anew below. What
the records kept (heads, norm order, activation) and the shapes of the weights say how to build the
same network from our classes.
"""

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.base.pretrained import restore
from src.utils.checkpoints import CheckpointError, refuse_compressed
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

# What torch.compile, DataParallel and weight averaging put into the names of weights.
WRAPPERS = ("_orig_mod", "module")

# Serve training alone: the projection of the alignment loss, the count of weight averaging.
NOT_OF_THE_VAE = ("proj.", "n_averaged")


class Record:
    """Stands for any object of a foreign class: keeps its state and does nothing."""

    state: dict[str, Any]
    items: dict[Any, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> "Record":
        # not in __init__, which pickle mostly passes by
        self = super().__new__(cls)
        self.state, self.items = {}, {}
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

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


def find(node: Any, path: str) -> Any:
    """What a dotted path of attributes, submodules and keys leads to from a record, else None."""
    for name in path.split("."):
        node = next((place[name] for place in _places(node) if name in place), None)
        for wrapper in WRAPPERS:
            node = next((place[wrapper] for place in _places(node) if wrapper in place), node)
    is_leaf = isinstance(node, Record) and "_val" in node.state  # of OmegaConf
    return node.state["_val"] if is_leaf else node


def _places(node: Any) -> list[dict[Any, Any]]:
    """Where the parts of a network, of a config or of a dict are."""
    if not isinstance(node, Record):
        return [node] if isinstance(node, dict) else []
    places = [node.state, node.items, node.state.get("_modules"), node.state.get("_content")]
    return [place for place in places if isinstance(place, dict)]


class InertUnpickler(pickle.Unpickler):
    """Unpickles tensors and plain types; every other class becomes a kind of `Record`."""

    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        content = archive.read(f"{prefix}data.pkl")
        _check_sizes(content)
        super().__init__(io.BytesIO(content))
        self.archive, self.prefix = archive, prefix
        self.storages: dict[str, Tensor] = {}

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
            if key not in self.storages:
                content = bytearray(self.archive.read(f"{self.prefix}data/{key}"))
                dtype = STORAGES[kind.__name__]
                self.storages[key] = torch.frombuffer(content or bytearray(8), dtype=dtype)
            return self.storages[key]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise pickle.UnpicklingError(f"unknown storage {pid!r}") from error


def _check_sizes(content: bytes) -> None:
    """Refuse a pickle for which the unpickler would take memory that the file does not fill."""
    for opcode, arg, _ in pickletools.genops(content):  # notices lengths beyond the end by itself
        if opcode.name == "LONG_BINPUT" and int(arg or 0) > len(content):
            raise pickle.UnpicklingError(f"a memo of {arg} entries in {len(content)} bytes")


def _rebuild_tensor(storage: Tensor, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    # as_strided checks all but repetition, which would cost memory later
    if math.prod(size) > storage.numel():
        raise pickle.UnpicklingError(f"a tensor of {tuple(size)} in {storage.numel()} numbers")
    return storage.as_strided(tuple(size), tuple(stride), offset)


def read_foreign_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a pickled checkpoint, foreign objects as `Record`.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is no zip file as torch writes it, or damaged.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        refuse_compressed(path)
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
    try:
        weights = _own_names(checkpoint["state_dict"])
        with torch.device("meta"):  # what the shapes ask for takes no memory yet
            vae = _build(weights, checkpoint.get("hyper_parameters"))
    except KeyError as error:
        raise CheckpointError(f"{path} is not a VAE of Chemeleon2: no {error} in it") from error
    except (TypeError, AttributeError, ValueError, IndexError, ArithmeticError) as error:
        raise CheckpointError(f"{path} is not a VAE of Chemeleon2 that fits: {error}") from error
    weights |= _missing_biases(weights, vae)
    content = {"state_dict": weights, "hyper_parameters": dict(vae.hparams)}
    return restore(VAEModule, content, path)


def _own_names(weights: dict[str, Any]) -> dict[str, Any]:
    """The VAE's own weights, under the names that they have without wrappers."""
    names = {n: ".".join(p for p in n.split(".") if p not in WRAPPERS) for n in weights}
    return {own: weights[name] for name, own in names.items() if not own.startswith(NOT_OF_THE_VAE)}


def _missing_biases(weights: dict[str, Tensor], vae: VAEModule) -> dict[str, Tensor]:
    """Zeros for layers without biases: these still end in a LayerNorm with one, ours do not."""
    prefixes = tuple(
        f"{part}.transformer.layers."
        for part in ("encoder", "decoder")
        if f"{part}.transformer.layers.0.linear1.bias" not in weights
    )
    return {
        name: torch.zeros(weight.shape)
        for name, weight in vae.state_dict().items()
        if name.startswith(prefixes) and name.endswith("bias")
    }


def _build(weights: dict[str, Tensor], parameters: Any) -> VAEModule:
    """The module, without its weights."""
    num_types = len(weights["encoder.atom_type_embedder.weight"])
    predicts = "decoder.atom_types_head.weight" in weights
    return VAEModule(
        TransformerEncoder(
            **_arguments(weights, parameters, "encoder"),
            max_num_elements=num_types,
            coords_input="raw",
            lattice_input="matrix",
        ),
        TransformerDecoder(
            **_arguments(weights, parameters, "decoder"),
            max_num_elements=(
                len(weights["decoder.atom_types_head.weight"]) if predicts else num_types
            ),
            atom_type_predict=predicts,
            atom_type_input=False,
            coords_output="raw",
        ),
        latent_dim=weights["post_quant_conv.weight"].shape[1],
        loss_weights=_loss_weights(parameters),
        quant_bias="quant_conv.bias" in weights,
        rotate=True,
        lengths_delta=None,
        latent_noise=0.0,
    )


def _arguments(weights: dict[str, Tensor], parameters: Any, part: str) -> dict[str, Any]:
    """Those of encoder or decoder: from shapes where these tell, else from the record.

    The record is a pickled network or, failing that, the config of one.
    """
    prefix = f"{part}.transformer.layers."
    hidden = weights[f"{prefix}0.linear1.weight"]
    has_bias = f"{prefix}0.linear1.bias" in weights

    def recorded(in_network: str, in_config: str) -> Any:
        found = find(parameters, f"{part}.transformer.layers.0.{in_network}")
        found = find(parameters, f"{part}.{in_config}") if found is None else found
        if found is None:
            raise ValueError(f"it does not say what {part}.{in_config} is")
        return found

    for norm in ("layers.0.norm1", "layers.0.norm2", "norm"):
        eps = find(parameters, f"{part}.transformer.{norm}.eps")
        if eps not in (None, 1e-5):
            raise ValueError(f"{part} has LayerNorms with eps {eps}")
    nhead = recorded("self_attn.num_heads", "nhead")
    return {
        "d_model": hidden.shape[1],
        "nhead": nhead,
        "num_layers": len({name.split(".")[3] for name in weights if name.startswith(prefix)}),
        "dim_feedforward": hidden.shape[0],
        "dropout": recorded("dropout.p", "dropout"),
        "activation": _activation(
            recorded("activation", "activation"), fused=has_bias and nhead % 2 == 0
        ),
        "norm_first": recorded("norm_first", "norm_first"),
        "bias": has_bias or f"{part}.transformer.norm.bias" in weights,
        "final_norm": f"{part}.transformer.norm.weight" in weights,
        "index_embedding": _index_embedding(parameters, part),
    }


def _activation(given: Any, fused: bool) -> str:
    """Of a `torch.nn.TransformerEncoderLayer`, as it computes it in evaluation mode.

    Its fused kernel (which it has for an even number of heads, with biases) knows the exact GELU
    alone and takes that for the tanh approximation, too. Chemeleon2 always asks for the latter.
    The two differ by less than 1e-3.
    """
    of_class = given if isinstance(given, type) else type(given)
    name = given if isinstance(given, str) else of_class.__name__
    if name in ("relu", "ReLU"):
        return "relu"
    if name not in ("gelu", "GELU"):
        raise ValueError(f"activation {name}")
    by_tanh = isinstance(given, str) or find(given, "approximate") == "tanh"
    return "gelu_tanh" if by_tanh and not fused else "gelu"


def _index_embedding(parameters: Any, part: str) -> bool:
    """Whether there is one; of those that Chemeleon2 had over time, ours is the first."""
    given = find(parameters, f"{part}.index_embedding")
    name = given if isinstance(given, str) or given is None else type(given).__name__
    if name in ("none", "NoPositionalEmbedding"):
        return False
    max_length = find(given, "max_len") or 2048
    if name in (None, "sinusoidal", "SinusoidalPositionalEmbedding") and max_length == 2048:
        return True
    raise ValueError(f"{part} has the index embedding {name} (max_len {max_length})")


def _loss_weights(parameters: Any) -> dict[str, float]:
    values = {name: find(parameters, f"loss_weights.{name}") for name in LOSS_WEIGHTS}
    return {name: float(value) for name, value in values.items() if value is not None}
