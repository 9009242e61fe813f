"""Compare the packed Transformer with `torch.nn.TransformerEncoder`."""

import copy

import pytest
import torch
from torch import nn

from src.nn.transformer import PackedTransformer, Packing, TransformerLayer, segment_mean

RAGGED = [1, 20, 7, 200, 1, 3]  # includes single atoms and a very large crystal
VARIANTS = {
    "pre-norm gelu": {},
    "post-norm": {"norm_first": False},
    "post-norm without final norm": {"norm_first": False, "final_norm": False},
    "relu": {"activation": "relu"},
    "no bias": {"bias": False},
    "post-norm relu no bias": {"norm_first": False, "activation": "relu", "bias": False},
}


def make_packing(lengths: list[int]) -> Packing:
    num = torch.tensor(lengths)
    return Packing(num, torch.arange(len(lengths)).repeat_interleave(num), max(lengths))


def stock_transformer(
    d_model: int, nhead: int, num_layers: int, final_norm=True, **kwargs
) -> nn.Module:
    options = {"norm_first": True, "activation": "gelu", "bias": True, **kwargs}
    layer = nn.TransformerEncoderLayer(
        d_model, nhead, dim_feedforward=48, dropout=0.0, batch_first=True, **options
    )
    norm = nn.LayerNorm(d_model, bias=options["bias"]) if final_norm else None
    return nn.TransformerEncoder(layer, num_layers, norm=norm, enable_nested_tensor=False)


def make_pair(**kwargs) -> tuple[PackedTransformer, nn.Module]:
    """A packed and a stock Transformer with the same random weights."""
    torch.manual_seed(0)
    stock = stock_transformer(32, 4, 2, **kwargs)
    for parameter in stock.parameters():  # including biases and norms, which start at zero and one
        nn.init.normal_(parameter, std=0.2)
    packed = PackedTransformer(32, 4, 2, dim_feedforward=48, **kwargs)
    packed.load_state_dict(stock.state_dict())
    return packed, stock


@pytest.mark.parametrize("kwargs", VARIANTS.values(), ids=VARIANTS)
def test_outputs_and_gradients_agree_with_the_stock_module(kwargs):
    packed, stock = make_pair(**kwargs)
    packing = make_packing(RAGGED)
    x = torch.randn(sum(RAGGED), 32)
    x_packed, x_stock = x.clone().requires_grad_(), x.clone().requires_grad_()
    weight = torch.randn(sum(RAGGED), 32)

    out = packed(x_packed, packing)
    padding = ~packing.mask[:, 0, 0, :]
    expected = packing.unpad(stock(packing.pad(x_stock), src_key_padding_mask=padding))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)

    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(x_packed.grad, x_stock.grad, rtol=1e-4, atol=1e-5)
    grads = dict(packed.named_parameters())
    for name, parameter in stock.named_parameters():
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(grads[name].grad, parameter.grad, rtol=1e-4, atol=1e-5 * scale)


def test_a_gated_layer_agrees_with_its_formula_and_is_no_larger():
    torch.manual_seed(0)
    gated = TransformerLayer(32, 4, 48, activation="swiglu")
    assert gated.linear1.weight.shape == (64, 32)  # gate and value, each two thirds of 48 wide
    x = torch.randn(5, 32)
    gate, value = gated.linear1.weight.split(32), gated.linear1.bias.split(32)
    a, b = (x @ w.T + bias for w, bias in zip(gate, value, strict=True))
    expected = (a * a.sigmoid() * b) @ gated.linear2.weight.T + gated.linear2.bias
    torch.testing.assert_close(gated._feed_forward(x), expected, rtol=1e-5, atol=1e-6)
    sizes = [
        sum(p.numel() for p in TransformerLayer(512, 8, 2048, activation=name).parameters())
        for name in ("swiglu", "gelu")
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_sequences_are_independent(activation):
    torch.manual_seed(0)
    packed = PackedTransformer(32, 4, 2, dim_feedforward=48, activation=activation)
    x = torch.randn(sum(RAGGED), 32)
    together = packed(x, make_packing(RAGGED)).split(RAGGED)
    for length, tokens, expected in zip(RAGGED, x.split(RAGGED), together, strict=True):
        alone = packed(tokens, make_packing([length]))
        torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_autocast_stays_near_float32():
    packed, _ = make_pair()
    packing, x = make_packing(RAGGED), torch.randn(sum(RAGGED), 32)
    with torch.autocast("cpu", torch.bfloat16):
        half = packed(x, packing)
    error = (half.float() - packed(x, packing)).std()
    assert error < 0.03  # the output is normalized, so its scale is about one


def test_dropout_acts_in_training_only():
    packed = PackedTransformer(32, 4, 2, dim_feedforward=48, dropout=0.5)
    packing, x = make_packing([3, 5]), torch.randn(8, 32)
    assert not torch.equal(packed(x, packing), packed(x, packing))
    packed.eval()
    assert torch.equal(packed(x, packing), packed(x, packing))


def test_pad_and_unpad_are_inverse_and_pad_with_zeros():
    packing, x = make_packing([2, 4, 1]), torch.randn(7, 3)
    padded = packing.pad(x)
    assert padded.shape == (3, 4, 3)
    assert torch.equal(packing.unpad(padded), x)
    torch.testing.assert_close(padded.sum(), x.sum())
    assert packing.mask.sum() == 7


def test_packing_finds_the_largest_length_itself():
    num = torch.tensor([2, 5])
    assert Packing(num, torch.tensor([0, 0, 1, 1, 1, 1, 1])).shape == (2, 5)


def test_segment_mean_is_in_float32():
    x = torch.randn(7, 3, dtype=torch.bfloat16)
    lengths = torch.tensor([2, 4, 1])
    mean = segment_mean(x, torch.tensor([0, 0, 1, 1, 1, 1, 2]), lengths)
    assert mean.dtype == torch.float32
    expected = torch.stack([part.float().mean(0) for part in x.split([2, 4, 1])])
    torch.testing.assert_close(mean, expected)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="d_model=30 is not a multiple of nhead=4"):
        PackedTransformer(30, 4, 1)
    with pytest.raises(ValueError, match="activation"):
        PackedTransformer(32, 4, 1, activation="tanh")


def test_layers_do_not_share_weights():
    packed = PackedTransformer(32, 4, 3)
    first, second = packed.layers[0], packed.layers[1]
    assert not torch.equal(first.linear1.weight, second.linear1.weight)
    assert copy.deepcopy(packed).layers[0].linear1.weight is not first.linear1.weight


def test_two_compiled_graphs_serve_all_shapes():
    """One for sequences of different lengths, and one for those that need no padding."""
    torch._dynamo.reset()
    packed, _ = make_pair()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    packed.compile(dynamic=True, backend=count)
    for lengths in ([3, 5], [2, 7, 20], [4, 4, 4, 9], RAGGED, [20] * 8, [1, 2], [3, 3]):
        x, packing = torch.randn(sum(lengths), 32), make_packing(lengths)
        torch.testing.assert_close(packed(x, packing), packed.forward(x, packing))
    torch._dynamo.reset()
    assert len(graphs) == 2
