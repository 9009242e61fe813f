"""Import Chemeleon2 checkpoints without executing anything in them.

These checkpoints are pickles of whole networks. While unpickling, every class is replaced by an
inert record that only stores its state. The exceptions are the few functions that rebuild tensors,
which are reimplemented here. The same network is then built from our classes, based on the records
(number of heads, position of the norms, activation) and the shapes of the weights.
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

# Names of torch's typed storages and their data types.
STORAGE_DTYPES = {
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

# Parts that torch.compile, DataParallel and weight averaging insert into the names of weights.
WRAPPERS = ("_orig_mod", "module")

# Used in training only: the projection for the alignment loss, the counter of weight averaging.
TRAINING_ONLY = ("proj.", "n_averaged")


class InertRecord:
    """Replaces an object of any foreign class. Stores its state and does nothing."""

    state: dict[str, Any]
    items: dict[Any, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> "InertRecord":
        # not in __init__, which pickle usually does not call
        self = super().__new__(cls)
        self.state, self.items = {}, {}
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {"state": state}

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def __call__(self, *args: Any, **kwargs: Any) -> "InertRecord":
        return InertRecord()

    def append(self, value: Any) -> None:
        self.items[len(self.items)] = value

    def extend(self, values: Any) -> None:
        for value in values:
            self.append(value)

    def add(self, value: Any) -> None:
        self.append(value)


def look_up(node: Any, path: str) -> Any:
    """The value at a dotted path of attributes, submodules and keys, or None if there is none.

    Wrappers on the way are skipped.
    """
    for name in path.split("."):
        node = next((children[name] for children in _children(node) if name in children), None)
        for wrapper in WRAPPERS:
            node = next(
                (children[wrapper] for children in _children(node) if wrapper in children), node
            )
    is_omegaconf_value = isinstance(node, InertRecord) and "_val" in node.state
    return node.state["_val"] if is_omegaconf_value else node


def _children(node: Any) -> list[dict[Any, Any]]:
    """The dicts in which a network, a config or a dict stores its parts."""
    if not isinstance(node, InertRecord):
        return [node] if isinstance(node, dict) else []
    dicts = [node.state, node.items, node.state.get("_modules"), node.state.get("_content")]
    return [each for each in dicts if isinstance(each, dict)]


class InertUnpickler(pickle.Unpickler):
    """Unpickles tensors and plain types. Every other class becomes a subclass of `InertRecord`."""

    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        content = archive.read(f"{prefix}data.pkl")
        _check_sizes(content)
        super().__init__(io.BytesIO(content))
        self.archive, self.prefix = archive, prefix
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data,
        }
        return allowed.get((module, name)) or type(name, (InertRecord,), {"__module__": module})

    def persistent_load(self, pid: Any) -> Tensor:
        try:
            _, kind, key, _, _ = pid
            if key not in self.storages:
                content = bytearray(self.archive.read(f"{self.prefix}data/{key}"))
                dtype = STORAGE_DTYPES[kind.__name__]
                self.storages[key] = torch.frombuffer(content or bytearray(8), dtype=dtype)
            return self.storages[key]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise pickle.UnpicklingError(f"unknown storage {pid!r}") from error


def _check_sizes(content: bytes) -> None:
    """Reject a pickle that would make the unpickler allocate far more memory than its size."""
    for opcode, arg, _ in pickletools.genops(content):  # raises if a length exceeds the content
        if opcode.name == "LONG_BINPUT" and int(arg or 0) > len(content):
            raise pickle.UnpicklingError(f"a memo of {arg} entries in {len(content)} bytes")


def _rebuild_tensor(storage: Tensor, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    # as_strided allows elements to repeat, so a small file could expand to a huge tensor
    if math.prod(size) > storage.numel():
        raise pickle.UnpicklingError(
            f"a tensor of shape {tuple(size)} in a storage of {storage.numel()} numbers"
        )
    return storage.as_strided(tuple(size), tuple(stride), offset)


def read_foreign_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a pickled checkpoint, with foreign objects as `InertRecord`.

    Raises:
        FileNotFoundError: if the file does not exist.
        CheckpointError: if it is not a zip file as written by torch, or is damaged.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        refuse_compressed(path)
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise CheckpointError(f"{path} is not a checkpoint: it contains no data.pkl")
            checkpoint = InertUnpickler(archive, pickles[0].removesuffix("data.pkl")).load()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(f"{path} is damaged or not a checkpoint: {error}") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise CheckpointError(f"{path} is not a checkpoint: it has no state_dict")
    return checkpoint


def import_chemeleon2(path: str | Path) -> VAEModule:
    """Import the VAE in a Chemeleon2 checkpoint as a `VAEModule`, in evaluation mode.

    Raises:
        FileNotFoundError: if the file does not exist.
        CheckpointError: if it is not a Chemeleon2 VAE, or uses options that are not supported here.
    """
    checkpoint = read_foreign_checkpoint(path)
    try:
        weights = _vae_weights(checkpoint["state_dict"])
        with torch.device("meta"):  # allocates no memory, whatever sizes the file claims
            vae = _build(weights, checkpoint.get("hyper_parameters"))
    except KeyError as error:
        raise CheckpointError(f"{path} is not a Chemeleon2 VAE: it has no {error}") from error
    except (TypeError, AttributeError, ValueError, IndexError, ArithmeticError) as error:
        raise CheckpointError(
            f"{path} is not a Chemeleon2 VAE that can be imported: {error}"
        ) from error
    weights |= _missing_biases(weights, vae)
    content = {"state_dict": weights, "hyper_parameters": dict(vae.hparams)}
    return restore(VAEModule, content, path)


def _vae_weights(weights: dict[str, Any]) -> dict[str, Any]:
    """The weights of the VAE, with wrappers removed from their names."""
    names = {n: ".".join(p for p in n.split(".") if p not in WRAPPERS) for n in weights}
    return {
        plain: weights[name] for name, plain in names.items() if not plain.startswith(TRAINING_ONLY)
    }


def _missing_biases(weights: dict[str, Tensor], vae: VAEModule) -> dict[str, Tensor]:
    """Zero biases for layers that have none in the checkpoint.

    In Chemeleon2, the final LayerNorm has a bias even if the layers have none. In our classes,
    either both have biases or neither.
    """
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
    """A module that matches the checkpoint, without its weights."""
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
    """The arguments of the encoder or decoder.

    They are inferred from the shapes of the weights where possible, otherwise from the pickled
    network or its config.
    """
    prefix = f"{part}.transformer.layers."
    hidden = weights[f"{prefix}0.linear1.weight"]
    has_bias = f"{prefix}0.linear1.bias" in weights

    def recorded(in_network: str, in_config: str) -> Any:
        found = look_up(parameters, f"{part}.transformer.layers.0.{in_network}")
        found = look_up(parameters, f"{part}.{in_config}") if found is None else found
        if found is None:
            raise ValueError(f"it does not specify {part}.{in_config}")
        return found

    for norm in ("layers.0.norm1", "layers.0.norm2", "norm"):
        eps = look_up(parameters, f"{part}.transformer.{norm}.eps")
        if eps not in (None, 1e-5):
            raise ValueError(f"{part} has LayerNorms with eps {eps}, but only 1e-5 is supported")
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
    """The activation that a `torch.nn.TransformerEncoderLayer` computes in evaluation mode.

    Chemeleon2 always uses the tanh approximation of GELU. But the fused kernel of this layer, which
    is used if there are biases and the number of heads is even, computes the exact GELU instead.
    The two differ by less than 1e-3.
    """
    class_ = given if isinstance(given, type) else type(given)
    name = given if isinstance(given, str) else class_.__name__
    if name in ("relu", "ReLU"):
        return "relu"
    if name not in ("gelu", "GELU"):
        raise ValueError(f"unsupported activation {name}")
    is_tanh = isinstance(given, str) or look_up(given, "approximate") == "tanh"
    return "gelu_tanh" if is_tanh and not fused else "gelu"


def _index_embedding(parameters: Any, part: str) -> bool:
    """Whether there is an index embedding; only the sinusoidal one is supported."""
    given = look_up(parameters, f"{part}.index_embedding")
    name = given if isinstance(given, str) or given is None else type(given).__name__
    if name in ("none", "NoPositionalEmbedding"):
        return False
    max_length = look_up(given, "max_len") or 2048
    # early versions always had the sinusoidal one and no such attribute
    if name in (None, "sinusoidal", "SinusoidalPositionalEmbedding") and max_length == 2048:
        return True
    raise ValueError(f"{part} has the unsupported index embedding {name} (max_len {max_length})")


def _loss_weights(parameters: Any) -> dict[str, float]:
    values = {name: look_up(parameters, f"loss_weights.{name}") for name in LOSS_WEIGHTS}
    return {name: float(value) for name, value in values.items() if value is not None}
