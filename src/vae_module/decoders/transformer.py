"""The Transformer decoder, which maps one vector per atom to crystals."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from src.nn.embedding import sinusoidal_embedding
from src.nn.transformer import PackedTransformer, Packing, segment_mean
from src.utils.errors import UserError
from src.utils.precision import full_precision
from src.vae_module.cell_init import init_cell_output


@dataclass(frozen=True, slots=True)
class Prediction:
    """The output of a decoder, in float32.

    Args:
        atom_logits: (N, max_num_elements), or None if atom types are given instead of predicted.
        coords: (N, 3, 2) unnormalized cosine and sine of 2 pi times each fractional coordinate, or
            (N, 3) raw fractional coordinates.
        lengths_scaled: (B, 3) lengths / num_atoms^(1/3), Å.
        angles_radians: (B, 3).
    """

    atom_logits: Tensor | None
    coords: Tensor
    lengths_scaled: Tensor
    angles_radians: Tensor

    @property
    def frac_coords(self) -> Tensor:
        """Fractional coordinates (N, 3) in [0, 1)."""
        if self.coords.dim() == 3:
            cosine, sine = self.coords.unbind(-1)
            coords = torch.atan2(sine, cosine) / (2 * math.pi)
        else:
            coords = self.coords
        wrapped = coords - coords.floor()
        return torch.where(wrapped < 1, wrapped, 0.0)  # -1e-9 wraps to 1.0 in float32


class TransformerDecoder(nn.Module):
    """A Transformer over the atoms of each crystal, with a head for each predicted quantity.

    The cell is predicted from the mean over the atoms of a crystal, so it does not depend on their
    order.

    Args:
        d_model, nhead, num_layers, dim_feedforward, dropout: see the encoder.
        activation, norm_first, bias, final_norm: see the encoder.
        max_num_elements: number of atom types, including 0, the mask token.
        atom_type_predict: predict atom types (de novo generation) instead of taking them as input
            (crystal structure prediction).
        atom_type_input: embed the given atom types. False is only for old checkpoints, whose
            decoders do not use the composition.
        coords_output: `torus` (a cosine and a sine for each coordinate) or `raw`.
        index_embedding: add a sinusoidal embedding of the index of each atom; see the encoder.

    Raises:
        UserError: for an unknown `coords_output` or `activation`.
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_layers: int = 8,
        dim_feedforward: int = 2048,
        dropout: float = 0.0,
        activation: str = "swiglu",
        norm_first: bool = True,
        bias: bool = True,
        final_norm: bool = True,
        max_num_elements: int = 100,
        atom_type_predict: bool = True,
        atom_type_input: bool = True,
        coords_output: str = "torus",
        index_embedding: bool = False,
    ) -> None:
        super().__init__()
        if coords_output not in ("torus", "raw"):
            raise UserError(f"coords_output must be 'torus' or 'raw', not {coords_output!r}")
        self.d_model = d_model
        self.nhead = nhead
        self.num_layers = num_layers
        self.dim_feedforward = dim_feedforward
        self.dropout = dropout
        self.activation = activation
        self.norm_first = norm_first
        self.bias = bias
        self.final_norm = final_norm
        self.max_num_elements = max_num_elements
        self.atom_type_predict = atom_type_predict
        self.atom_type_input = atom_type_input
        self.coords_output = coords_output
        self.index_embedding = index_embedding

        self.transformer = PackedTransformer(
            d_model,
            nhead,
            num_layers,
            dim_feedforward,
            dropout,
            activation,
            norm_first,
            bias,
            final_norm,
        )
        if atom_type_predict:
            self.atom_types_head = nn.Linear(d_model, max_num_elements)
        elif atom_type_input:
            self.atom_type_embedder = nn.Embedding(max_num_elements, d_model)
        on_torus = coords_output == "torus"
        self.frac_coords_head = nn.Linear(d_model, 6 if on_torus else 3, bias=on_torus)
        self.lattice_head = nn.Linear(d_model, 6, bias=on_torus)
        if on_torus:
            init_cell_output(self.lattice_head)

    def forward(
        self,
        x: Tensor,
        num_atoms: Tensor,
        batch: Tensor,
        atom_types: Tensor | None = None,
        max_num_atoms: int | None = None,
    ) -> Prediction:
        """Decode crystals from one vector per atom.

        Args:
            x: (N, d_model) a vector for each atom.
            num_atoms: (B,) number of atoms in each crystal.
            batch: (N,) crystal of each atom.
            atom_types: (N,) atomic numbers, for a decoder that does not predict them.
            max_num_atoms: the largest of `num_atoms`; without it, reading the value synchronizes
                with the device.

        Raises:
            UserError: if atom types are required but not given.
        """
        packing = Packing(num_atoms, batch, max_num_atoms)
        if not self.atom_type_predict and self.atom_type_input:
            if atom_types is None:
                raise UserError("this decoder does not predict atom types: pass atom_types")
            x = x + self.atom_type_embedder(atom_types)
        if self.index_embedding:
            x = x + sinusoidal_embedding(packing.token_idx, self.d_model)
        hidden = self.transformer(x, packing)
        with full_precision(hidden):
            hidden = hidden.float()
            logits = self.atom_types_head(hidden) if self.atom_type_predict else None
            coords = self.frac_coords_head(hidden)
            lattice = self.lattice_head(segment_mean(hidden, batch, num_atoms))
        lengths_scaled, angles_radians = lattice.split(3, dim=-1)
        return Prediction(
            atom_logits=logits,
            coords=coords.unflatten(-1, (3, 2)) if self.coords_output == "torus" else coords,
            lengths_scaled=lengths_scaled,
            angles_radians=angles_radians,
        )
