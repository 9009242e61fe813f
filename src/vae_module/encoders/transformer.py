"""The Transformer encoder, which maps crystals to one hidden vector per atom."""

import torch
from torch import Tensor, nn

from src.data.schema import CrystalBatch
from src.nn.embedding import MLPEmbedding, fourier_features, sinusoidal_embedding
from src.nn.transformer import PackedTransformer, Packing
from src.utils.errors import UserError
from src.vae_module.cell_init import init_cell_input


class TransformerEncoder(nn.Module):
    """A Transformer on the sum of embeddings of atom type, fractional coordinates and cell.

    With the default inputs, the output is invariant to rotations and to shifts of atoms by lattice
    vectors, and equivariant to permutations of the atoms.

    Args:
        d_model: width of the hidden vectors.
        nhead: number of attention heads.
        num_layers: number of Transformer layers.
        dim_feedforward: width of the feed-forward networks. With `swiglu` the width is two thirds
            of it, so that the number of parameters is the same.
        dropout: dropout rate in attention, feed-forward networks and residual branches.
        activation: `swiglu`, `gelu`, `gelu_tanh` or `relu`.
        norm_first: apply LayerNorm before each sublayer instead of after it.
        bias: use biases in the Transformer.
        final_norm: end the Transformer with a LayerNorm.
        max_num_elements: number of atom types in the embedding; atomic numbers must be smaller.
        coords_input: `fourier` (harmonics of each coordinate) or `raw`.
        num_harmonics: number of harmonics, for `fourier`.
        lattice_input: `parameters` (lengths_scaled in Å and angles in radians, which are invariant
            to rotation) or `matrix`.
        index_embedding: add a sinusoidal embedding of the index of each atom. It breaks the
            permutation equivariance and exists for old checkpoints.

    Raises:
        UserError: for an unknown `coords_input`, `lattice_input` or `activation`.
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
        coords_input: str = "fourier",
        num_harmonics: int = 8,
        lattice_input: str = "parameters",
        index_embedding: bool = False,
    ) -> None:
        super().__init__()
        if coords_input not in ("fourier", "raw"):
            raise UserError(f"coords_input must be 'fourier' or 'raw', not {coords_input!r}")
        if lattice_input not in ("parameters", "matrix"):
            raise UserError(
                f"lattice_input must be 'parameters' or 'matrix', not {lattice_input!r}"
            )
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
        self.coords_input = coords_input
        self.num_harmonics = num_harmonics
        self.lattice_input = lattice_input
        self.index_embedding = index_embedding

        uses_matrix, uses_fourier = lattice_input == "matrix", coords_input == "fourier"
        self.atom_type_embedder = nn.Embedding(max_num_elements, d_model)
        self.lattices_embedder = MLPEmbedding(
            9 if uses_matrix else 6, d_model, bias=not uses_matrix
        )
        if not uses_matrix:
            init_cell_input(self.lattices_embedder)
        self.frac_coords_embedder = MLPEmbedding(
            6 * num_harmonics if uses_fourier else 3, d_model, bias=uses_fourier
        )
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

    def forward(self, batch: CrystalBatch) -> Tensor:
        """Encode each atom as a hidden vector: (N, d_model)."""
        x = self.atom_type_embedder(batch.atom_types)
        x = x + self.frac_coords_embedder(self._coords_features(batch))
        x = x + self.lattices_embedder(self._lattice_features(batch))[batch.batch]
        if self.index_embedding:
            x = x + sinusoidal_embedding(batch.token_idx, self.d_model)
        packing = Packing(batch.num_atoms, batch.batch, batch.max_num_atoms)
        return self.transformer(x, packing)

    def _coords_features(self, batch: CrystalBatch) -> Tensor:
        if self.coords_input == "raw":
            return batch.frac_coords
        return fourier_features(batch.frac_coords, self.num_harmonics)

    def _lattice_features(self, batch: CrystalBatch) -> Tensor:
        if self.lattice_input == "matrix":
            return batch.lattices.flatten(1)
        return torch.cat([batch.lengths_scaled, batch.angles_radians], dim=-1)
