import torch

from src.nn.embedding import MLPEmbedding, fourier_features, sinusoidal_embedding


def test_fourier_features_by_hand():
    features = fourier_features(torch.tensor([[0.25, 0.0, 0.5]]), 2)
    # sines of x, y, z for harmonics 1 and 2, then cosines
    expected = [1, 0, 0, 0, 0, 0, 0, -1, 1, 1, -1, 1]
    torch.testing.assert_close(features, torch.tensor([expected]).float(), rtol=0, atol=1e-6)


def test_fourier_features_are_periodic():
    # in double precision, since x + 3 is rounded
    x = torch.rand(10, 3, dtype=torch.float64)
    shifted = fourier_features(x + torch.tensor([1.0, -2.0, 3.0]), 8)
    torch.testing.assert_close(shifted, fourier_features(x, 8), rtol=0, atol=1e-12)


def test_mlp_embedding_is_linear_silu_linear():
    embed = MLPEmbedding(3, 5)
    x = torch.randn(4, 3)
    expected = embed[2](torch.nn.functional.silu(embed[0](x)))
    assert torch.equal(embed(x), expected)
    assert MLPEmbedding(3, 5, bias=False)[0].bias is None


def test_sinusoidal_embedding_by_hand():
    embedding = sinusoidal_embedding(torch.tensor([0, 1]), 4, max_length=4)
    # frequencies pi / 4^0 and pi / 4^(1/2)
    expected = [[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, -1.0, 0.0]]
    torch.testing.assert_close(embedding, torch.tensor(expected), rtol=0, atol=1e-6)
