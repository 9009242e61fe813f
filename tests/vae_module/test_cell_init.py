"""Check the initialization of layers whose inputs or outputs are cells."""

import torch

from src.nn.embedding import MLPEmbedding
from src.vae_module.cell_init import MEAN, SPREAD, init_cell_input
from src.vae_module.decoders.transformer import TransformerDecoder
from src.vae_module.encoders.transformer import TransformerEncoder

SIZES = {"d_model": 32, "nhead": 4, "num_layers": 1, "dim_feedforward": 64}


def test_the_embedding_of_cells_is_that_of_standardized_cells_before():
    torch.manual_seed(0)
    embedder = MLPEmbedding(6, 5)
    cells = torch.tensor([[2.0, 3.0, 4.0, 1.2, 1.5, 2.0], [4.0, 1.0, 2.5, 1.57, 1.4, 1.1]])
    expected = embedder((cells - torch.tensor(MEAN)) / torch.tensor(SPREAD))
    init_cell_input(embedder)
    torch.testing.assert_close(embedder(cells), expected)


def test_a_new_encoder_is_equally_sensitive_to_all_cell_parameters():
    torch.manual_seed(0)
    embedder = TransformerEncoder(**SIZES).lattices_embedder[0]
    typical = embedder(torch.tensor(MEAN))
    torch.manual_seed(0)
    plain = TransformerEncoder(**SIZES, lattice_input="matrix").lattices_embedder[0]
    assert plain.bias is None  # the matrix input of earlier models is not changed
    # a change by one standard deviation has a similar effect for each length and angle
    moved = [
        (embedder(torch.tensor(MEAN) + torch.eye(6)[k] * SPREAD[k]) - typical).norm()
        for k in range(6)
    ]
    assert max(moved) / min(moved) < 2


def test_a_new_decoder_predicts_typical_cells():
    torch.manual_seed(0)
    num_atoms = torch.tensor([3, 9])
    batch = torch.arange(2).repeat_interleave(num_atoms)
    prediction = TransformerDecoder(**SIZES)(torch.randn(12, 32), num_atoms, batch)
    assert (prediction.lengths_scaled - 2.5).abs().max() < 1.5
    assert (prediction.angles_radians.rad2deg() - 90).abs().max() < 60
    assert TransformerDecoder(**SIZES, coords_output="raw").lattice_head.bias is None
