"""The Transformer encoder: crystals to one hidden vector per atom."""

import torch
from torch import Tensor, nn

from src.data.schema import CrystalBatch
from src.nn.embedding import MLPEmbedding, fourier_features, sinusoidal_embedding
from src.nn.transformer import PackedTransformer, Packing
from src.vae_module.cell_init import start_from_standardized


class TransformerEncoder(nn.Module):
    """Sum of embeddings of atom type, fractional coordinates and cell, then a Transformer.

    With the default inputs no translation by whole cells, no rotation and no order of the atoms
    makes a difference to what an atom's vector is.

    Args:
        d_model: width.
        nhead: attention heads.
        num_layers: Transformer layers.
        dim_feedforward: width of the feed-forward networks; two thirds of it for `swiglu`, whose
            networks are then as large.
        dropout: in attention, feed-forward and residual branches.
        activation: `swiglu`, `gelu`, `gelu_tanh` or `relu`.
        norm_first: LayerNorm before each sub-layer rather than after.
        bias: biases in the Transformer.
        final_norm: end the Transformer with a LayerNorm.
        max_num_elements: size of the table of atom types; atomic numbers stay below it.
        coords_input: `fourier` (harmonics of each coordinate) or `raw`.
        num_harmonics: how many, for `fourier`.
        lattice_input: `parameters` (lengths_scaled in Å and angles in radians: invariant to
            rotation) or `matrix`.
        index_embedding: add a sinusoidal embedding of the atom's index. It breaks the equivariance
            under permutation; old checkpoints need it.

    Raises:
        ValueError: for an unknown `coords_input`, `lattice_input` or `activation`.
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
            raise ValueError(f"coords_input is 'fourier' or 'raw', not {coords_input!r}")
        if lattice_input not in ("parameters", "matrix"):
            raise ValueError(f"lattice_input is 'parameters' or 'matrix', not {lattice_input!r}")
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

        by_matrix, by_fourier = lattice_input == "matrix", coords_input == "fourier"
        self.atom_type_embedder = nn.Embedding(max_num_elements, d_model)
        self.lattices_embedder = MLPEmbedding(9 if by_matrix else 6, d_model, bias=not by_matrix)
        if not by_matrix:
            start_from_standardized(self.lattices_embedder)
        self.frac_coords_embedder = MLPEmbedding(
            6 * num_harmonics if by_fourier else 3, d_model, bias=by_fourier
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
        """Hidden vectors of the atoms: (N, d_model)."""
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
