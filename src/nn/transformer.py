"""A Transformer encoder for sequences of different lengths, packed without padding.

The tokens of all sequences in a batch form one packed (N, D) tensor, and all layers work on this
tensor. Only the attention core uses a padded (B, H, L, E) tensor; no other file deals with padding.
Parameters have the names and shapes of `torch.nn.TransformerEncoder`, so that a `state_dict` of one
can be loaded into the other and both compute the same. (The activation `swiglu` exists only here.)

Shape symbols: N tokens in the batch, B sequences, L padded length, D model width, H heads,
E = D / H.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.nn.rows import add_rows, drop_rows, num_spare_rows
from src.utils.errors import UserError
from src.utils.precision import full_precision


def swiglu(x: Tensor) -> Tensor:
    """SiLU of the first half of the last dimension, times the second half (Shazeer 2020)."""
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "swiglu": swiglu,
}


class Packing:
    """Converts between packed tokens (N, D) and padded sequences (B, L, D).

    Args:
        lengths: (B,) number of tokens in each sequence.
        batch: (N,) sequence of each token, ascending.
        max_length: the largest of `lengths`. Without it, reading the value synchronizes with the
            device.

    Attributes:
        is_full: whether all sequences are equally long, so that there is nothing to pad.
    """

    def __init__(self, lengths: Tensor, batch: Tensor, max_length: int | None = None) -> None:
        length = int(lengths.max()) if max_length is None else max_length
        self.is_full = len(batch) == len(lengths) * length
        starts = lengths.cumsum(0) - lengths
        self.token_idx = torch.arange(len(batch), device=batch.device) - starts[batch]
        self.index = batch * length + self.token_idx
        is_token = torch.arange(length, device=batch.device) < lengths[:, None]
        self.mask = is_token[:, None, None, :]

    @property
    def shape(self) -> tuple[int, int]:
        """(B, L), taken from a tensor so that a compiled graph works for all shapes."""
        return self.mask.shape[0], self.mask.shape[3]

    def pad(self, x_ND: Tensor) -> Tensor:
        """(N, D) to (B, L, D), padded with zeros."""
        b, length = self.shape
        if self.is_full:
            return x_ND.view(b, length, -1)
        padded = x_ND.new_zeros(b * length, x_ND.shape[1])
        return padded.index_copy(0, self.index, x_ND).view(b, length, -1)

    def unpad(self, x_BLD: Tensor) -> Tensor:
        """(B, L, D) to (N, D)."""
        flat = x_BLD.flatten(0, 1)
        return flat if self.is_full else flat.index_select(0, self.index)


def segment_mean(x_ND: Tensor, batch: Tensor, lengths: Tensor) -> Tensor:
    """Mean over the tokens of each sequence, accumulated in float32.

    Args:
        x_ND: (N, D).
        batch: (N,) sequence of each token.
        lengths: (B,) number of tokens in each sequence, at least one.

    Returns:
        (B, D) float32.
    """
    total = x_ND.new_zeros(len(lengths), x_ND.shape[1], dtype=torch.float32)
    return total.index_add(0, batch, x_ND.float()) / lengths[:, None]


def attention_core(
    q_BHLE: Tensor,
    k_BHLE: Tensor,
    v_BHLE: Tensor,
    mask_B11L: Tensor | None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k^T / sqrt(E)) v over the tokens of each sequence, without padding: (B, H, L, E).

    The mask is true for tokens; None: there is no padding.

    On a CPU, the computation is always in float32: in half precision the backward pass is several
    times slower, and the matrices are too small to benefit from half-precision units.
    """
    dtype = q_BHLE.dtype
    if q_BHLE.device.type == "cpu":
        q_BHLE, k_BHLE, v_BHLE = q_BHLE.float(), k_BHLE.float(), v_BHLE.float()
    with full_precision(q_BHLE):
        out_BHLE = F.scaled_dot_product_attention(
            q_BHLE, k_BHLE, v_BHLE, attn_mask=mask_B11L, dropout_p=dropout
        )
    return out_BHLE.to(dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention within each packed sequence.

    Rows that follow those of the tokens (see `src.nn.rows`) attend to nothing, and nothing to them.
    """

    def __init__(self, d_model: int, nhead: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        if not isinstance(nhead, int) or nhead < 1 or d_model % nhead:
            raise UserError(f"d_model={d_model} is not a multiple of nhead={nhead}")
        self.nhead = nhead
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model)) if bias else None
        self.out_proj = nn.Linear(d_model, d_model, bias=bias)
        nn.init.xavier_uniform_(self.in_proj_weight)
        if bias:
            nn.init.zeros_(self.out_proj.bias)

    def forward(self, x_ND: Tensor, packing: Packing) -> Tensor:
        qkv_ND = F.linear(x_ND, self.in_proj_weight, self.in_proj_bias)
        spare = len(x_ND) - len(packing.index)
        qkv_BLD = packing.pad(drop_rows(qkv_ND, spare))
        q, k, v = qkv_BLD.unflatten(-1, (3, self.nhead, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mask = None if packing.is_full else packing.mask
        out_BHLE = attention_core(q, k, v, mask, dropout)
        out_BLD = out_BHLE.transpose(1, 2).flatten(2)
        return self.out_proj(add_rows(packing.unpad(out_BLD), spare))


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward network, with LayerNorm before (default) or after each."""

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.0,
        activation: str = "gelu",
        norm_first: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise UserError(f"activation must be one of {list(ACTIVATIONS)}, not {activation!r}")
        self.self_attn = SelfAttention(d_model, nhead, dropout, bias)
        # A gate adds a third matrix: two thirds of the width keep the number of parameters.
        gated = activation == "swiglu"
        hidden = 8 * math.ceil(dim_feedforward / 12) if gated else dim_feedforward
        self.linear1 = nn.Linear(d_model, 2 * hidden if gated else hidden, bias=bias)
        self.linear2 = nn.Linear(hidden, d_model, bias=bias)
        self.norm1 = nn.LayerNorm(d_model, bias=bias)
        self.norm2 = nn.LayerNorm(d_model, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.activation = ACTIVATIONS[activation]
        self.norm_first = norm_first

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        if self.norm_first:
            x = x + self._attention(self.norm1(x), packing)
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(x + self._attention(x, packing))
        return self.norm2(x + self._feed_forward(x))

    def _attention(self, x: Tensor, packing: Packing) -> Tensor:
        return self.dropout(self.self_attn(x, packing))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(self.activation(self.linear1(x)))))


class PackedTransformer(nn.Module):
    """`torch.nn.TransformerEncoder` for packed sequences.

    The other arguments are those of `torch.nn.TransformerEncoderLayer`.

    Args:
        num_layers: number of layers.
        final_norm: whether to apply a LayerNorm after the last layer.

    Raises:
        UserError: for an unknown activation, or if `d_model` is not a multiple of `nhead`.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        num_layers: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.0,
        activation: str = "gelu",
        norm_first: bool = True,
        bias: bool = True,
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerLayer(d_model, nhead, dim_feedforward, dropout, activation, norm_first, bias)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(d_model, bias=bias) if final_norm else nn.Identity()

    def forward(self, x_ND: Tensor, packing: Packing) -> Tensor:
        """(N, D) tokens to (N, D) tokens; each token attends to those of its own sequence."""
        spare = num_spare_rows(x_ND)
        x_ND = add_rows(x_ND, spare)
        for layer in self.layers:
            x_ND = layer(x_ND, packing)
        return self.norm(drop_rows(x_ND, spare))
