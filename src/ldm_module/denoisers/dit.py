"""A diffusion Transformer on packed atoms."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.nn.rows import add_rows, drop_rows, num_spare_rows, with_rounded_rows
from src.nn.transformer import ACTIVATIONS, Packing, SelfAttention
from src.utils.errors import UserError
from src.utils.precision import full_precision

TIME_FEATURES = 128
MAX_LOG_SNR = 7.0  # logits of times are clamped to this range: t from 0.001 to 0.999


class DiTLayer(nn.Module):
    """Self-attention and a feed-forward network, each shifted, scaled and gated by the conditions
    (adaLN-Zero: Peebles & Xie 2023, "Scalable Diffusion Models with Transformers")."""

    def __init__(self, d_model: int, nhead: int, dim_feedforward: int, activation: str) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model, elementwise_affine=False)
        self.self_attn = SelfAttention(d_model, nhead)
        self.norm2 = nn.LayerNorm(d_model, elementwise_affine=False)
        # a gate adds a third matrix: two thirds of the width keep the number of parameters
        gated = activation == "swiglu"
        hidden = 8 * math.ceil(dim_feedforward / 12) if gated else dim_feedforward
        self.linear1 = nn.Linear(d_model, 2 * hidden if gated else hidden)
        self.linear2 = nn.Linear(hidden, d_model)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor, modulation: Tensor, batch: Tensor, packing: Packing) -> Tensor:
        """(N, D) to (N, D), with the modulation (B, 6 D) of each crystal, or (1, 6 D) of all."""
        of_atoms = modulation if len(modulation) == 1 else modulation[batch]
        shift1, scale1, gate1, shift2, scale2, gate2 = of_atoms.chunk(6, dim=-1)
        inner = torch.addcmul(shift1, self.norm1(x), 1 + scale1)
        x = torch.addcmul(x, gate1, self.self_attn(inner, packing))
        inner = torch.addcmul(shift2, self.norm2(x), 1 + scale2)
        hidden = self.linear2(self.activation(self.linear1(inner)))
        return torch.addcmul(x, gate2, hidden)


class DiTLayers(nn.Module):
    """The layers, under the name by which the optimizer finds the matrices of a Transformer."""

    def __init__(
        self, d_model: int, nhead: int, num_layers: int, dim_feedforward: int, activation: str
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DiTLayer(d_model, nhead, dim_feedforward, activation) for _ in range(num_layers)
        )

    def forward(self, x: Tensor, modulations: Tensor, batch: Tensor, packing: Packing) -> Tensor:
        """(N, D) to (N, D), with the modulations (B, layers, 6 D) of each crystal."""
        spare = num_spare_rows(x)
        x, batch = add_rows(x, spare), F.pad(batch, (0, spare)) if spare else batch
        for layer, modulation in zip(self.layers, modulations.unbind(1), strict=True):
            x = layer(x, modulation, batch, packing)
        return drop_rows(x, spare)


class DiT(nn.Module):
    """Predicts what `src.ldm_module.flow.precondition` asks of a network.

    It treats atoms as a set: permuting the atoms of a crystal permutes the output.

    Args:
        latent_dim: channels of a latent.
        atom_type_input: embed given atom types (crystal structure prediction).
        d_model: width.
        nhead: attention heads.
        num_layers: layers.
        dim_feedforward: width of the feed-forward networks; see `TransformerEncoder`.
        activation: see `TransformerEncoder`.
        max_num_elements: atom types in the embedding.

    Raises:
        UserError: for an unknown `activation`, or if `d_model` is not a multiple of `nhead`.
    """

    def __init__(
        self,
        latent_dim: int,
        atom_type_input: bool = False,
        d_model: int = 512,
        nhead: int = 8,
        num_layers: int = 12,
        dim_feedforward: int = 2048,
        activation: str = "swiglu",
        max_num_elements: int = 100,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise UserError(f"activation must be one of {list(ACTIVATIONS)}, not {activation!r}")
        self.latent_dim = latent_dim
        self.atom_type_input = atom_type_input
        self.d_model = d_model
        self.nhead = nhead
        self.num_layers = num_layers
        self.dim_feedforward = dim_feedforward
        self.activation = activation
        self.max_num_elements = max_num_elements

        self.latent_embedder = nn.Linear(latent_dim, d_model)
        if atom_type_input:
            self.atom_type_embedder = nn.Embedding(max_num_elements, d_model)
        self.condition_embedder = nn.Sequential(
            nn.Linear(2 * TIME_FEATURES, d_model), nn.SiLU(), nn.Linear(d_model, d_model)
        )
        self.transformer = DiTLayers(d_model, nhead, num_layers, dim_feedforward, activation)
        self.modulation = nn.Linear(d_model, 6 * num_layers * d_model)
        self.final_norm = nn.LayerNorm(d_model, elementwise_affine=False)
        self.final_modulation = nn.Linear(d_model, 2 * d_model)
        self.head = nn.Linear(d_model, latent_dim)
        for linear in (self.modulation, self.final_modulation, self.head):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        num_atoms: Tensor,
        batch: Tensor,
        condition: Tensor | None = None,
        atom_types: Tensor | None = None,
        max_num_atoms: int | None = None,
    ) -> Tensor:
        """Predict one vector per atom.

        Args:
            x: (N, latent_dim) of unit variance.
            t: (B,) time of each crystal, in [0, 1], or (1,) if time, number of atoms and condition
                are the same for all.
            num_atoms: (B,).
            batch: (N,) crystal of each atom.
            condition: (B, d_model), or (1, d_model) with (1,) times: what is added to the embedding
                of time and number of atoms.
            atom_types: (N,) atomic numbers, with `atom_type_input`.
            max_num_atoms: see `Packing`.

        Returns:
            (N, latent_dim) float32.
        """
        hidden = with_rounded_rows(self.latent_embedder, x)
        if self.atom_type_input:
            if atom_types is None:
                raise UserError("this denoiser needs atom types: pass atom_types")
            hidden = hidden + self.atom_type_embedder(atom_types)
        shared = len(t) == 1
        given = with_rounded_rows(self.condition_embedder, _features(t, num_atoms[: len(t)]))
        given = F.silu(given if condition is None else given + condition)
        modulations = with_rounded_rows(self.modulation, given).unflatten(1, (self.num_layers, -1))
        packing = Packing(num_atoms, batch, max_num_atoms)
        if not torch.is_grad_enabled():  # when it is sampled from, fewer copies are worth more
            hidden = hidden.to(modulations.dtype)
        hidden = self.transformer(hidden, modulations, batch, packing)
        with full_precision(hidden):
            final = self.final_modulation(given.float())
            shift, scale = (final if shared else final[batch]).chunk(2, dim=-1)
            return self.head(torch.addcmul(shift, self.final_norm(hidden.float()), 1 + scale))


def _features(t: Tensor, num_atoms: Tensor) -> Tensor:
    """Sines and cosines of the logit of the time and of the log of the number of atoms."""
    logit = torch.logit(t.float()).clamp(-MAX_LOG_SNR, MAX_LOG_SNR)
    steps = torch.arange(TIME_FEATURES // 2, device=t.device)
    frequencies = 0.05 * 400 ** (steps / (TIME_FEATURES // 2 - 1))  # 0.05 to 20 per unit
    phases = torch.stack([logit, 4 * num_atoms.float().log()], dim=1)[:, :, None] * frequencies
    return torch.cat([phases.sin(), phases.cos()], dim=-1).flatten(1)
