"""Compare the Muon optimizer with AdamW and an SVD."""

import copy

import pytest
import torch
from torch import nn

from src.utils.muon import Muon, orthogonalize, orthogonalize_all
from src.vae_module import VAEModule
from src.vae_module.decoders.transformer import TransformerDecoder
from src.vae_module.encoders.transformer import TransformerEncoder


def quadratic(params, targets):
    return sum(((p - t) ** 2).sum() for p, t in zip(params, targets, strict=True))


def make(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def muon(params, matrices=(0,), **settings):
    """Muon for the parameters at the indices `matrices`, AdamW for the others."""
    names = [f"{'transformer.layers' if k in matrices else 'head'}.{k}" for k in range(len(params))]
    return Muon(zip(names, params, strict=True), **settings)


def descend(optimizer, params, targets, steps):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = quadratic(params, targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("shape", [(24, 24), (16, 64), (64, 16)])
def test_orthogonalize_keeps_singular_vectors_and_brings_values_close_to_one(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    before = matrices.clone()
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    assert (s.amax(1) / s.amin(1)).max() > 2  # the singular values differ at first
    middle = u.mT @ orthogonalize(matrices, 5) @ vh.mT
    values = middle.diagonal(dim1=1, dim2=2)
    strong = s > 0.02 * s.norm(dim=1, keepdim=True)
    assert (values[strong] > 0.6).all()
    assert (values < 1.25).all()
    assert (middle - torch.diag_embed(values)).abs().max() < 1e-3
    assert torch.equal(matrices, before)


def test_orthogonalize_does_not_depend_on_the_scale():
    matrices = torch.randn(2, 8, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonalize(1e-6 * matrices, 3), orthogonalize(matrices, 3))
    assert torch.equal(orthogonalize(torch.zeros(1, 4, 6), 3), torch.zeros(1, 4, 6))


def test_other_parameters_are_updated_as_by_adamw():
    shapes, settings = [(5, 3), (7,), ()], {"lr": 0.03, "betas": (0.9, 0.95), "weight_decay": 0.1}
    ours, theirs, targets = make(shapes), make(shapes), make(shapes, seed=1)
    matrix = make([(2, 2)])  # Muon requires at least one
    descend(muon([*matrix, *ours], **settings), ours, targets, 20)
    descend(torch.optim.AdamW(theirs, **settings), theirs, targets, 20)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(12, 12), (8, 32), (32, 8)])
def test_the_update_of_a_matrix_is_as_large_as_with_adamw(shape):
    """Its root mean square is 0.2 lr for every shape (Liu et al. 2025, section 2.2)."""
    (matrix,), (target,) = make([shape]), make([shape], seed=1)
    before = matrix.detach().clone()
    descend(muon([matrix], lr=0.1, weight_decay=0.0), [matrix], [target], 1)
    assert (matrix - before).square().mean().sqrt().item() == pytest.approx(0.02, rel=0.25)


def test_matrices_of_the_same_shape_are_independent():
    shapes = [(6, 9), (9, 6), (6, 9)]
    together, apart, targets = make(shapes), make(shapes), make(shapes, seed=1)
    descend(muon(together, (0, 1, 2), lr=0.05), together, targets, 5)
    for matrix, target in zip(apart, targets, strict=True):
        descend(muon([matrix], lr=0.05), [matrix], [target], 5)
    for mine, alone in zip(together, apart, strict=True):
        torch.testing.assert_close(mine, alone)


def test_descends_and_decays():
    matrix, vector = make([(6, 9), (4,)])
    targets = [torch.zeros(6, 9), torch.zeros(4)]
    losses = descend(muon([matrix, vector], lr=0.1), [matrix, vector], targets, 100)
    assert losses[-1] < 0.01 * losses[0]

    for parameter in (matrix, vector):  # only weight decay if the gradient is zero
        parameter.data.fill_(1.0)
    optimizer = muon([matrix, vector], lr=0.1, weight_decay=0.5)
    descend(optimizer, [matrix, vector], [matrix.detach().clone(), vector.detach().clone()], 1)
    torch.testing.assert_close(matrix.data, torch.full((6, 9), 0.95))
    torch.testing.assert_close(vector.data, torch.full((4,), 0.95))


def test_continues_exactly_from_a_saved_state():
    shapes = [(6, 9), (4,)]
    first, targets = make(shapes), make(shapes, seed=1)
    optimizer = muon(first, lr=0.05)
    descend(optimizer, first, targets, 3)
    second = copy.deepcopy(first)
    other = muon(second, lr=0.05)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    descend(optimizer, first, targets, 3)
    descend(other, second, targets, 3)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_parameters_without_a_gradient_do_not_change():
    used, unused = make([(3, 4), (3, 4)])
    before = unused.detach().clone()
    optimizer = muon([used, unused], (0, 1), lr=0.1)
    used.sum().backward()
    optimizer.step()
    assert torch.equal(unused, before)
    assert unused not in optimizer.state


def test_refuses_a_pattern_that_matches_no_matrix():
    matrix, vector = make([(3, 4), (3,)])
    for names, pattern in (["head", "layers.bias"], "layers"), (["head", "bias"], "layer"):
        with pytest.raises(ValueError, match=f"that matches '{pattern}'.*adamw"):
            Muon(zip(names, [matrix, vector], strict=True), matrices=pattern)


@pytest.mark.parametrize(
    "setting",
    [
        {"lr": -1.0},
        {"lr": float("nan")},
        {"weight_decay": -0.1},
        {"eps": -1e-8},
        {"ns_steps": 0},
        {"momentum": 1.0},
        {"betas": (0.9, 1.5)},
    ],
)
def test_refuses_settings_out_of_range(setting):
    ((name, _),) = setting.items()
    with pytest.raises(ValueError, match=f"{name}="):
        muon(make([(3, 4)]), **setting)


def test_only_transformer_layers_of_the_model_are_updated_by_muon():
    vae = VAEModule(
        TransformerEncoder(d_model=16, nhead=2, num_layers=2, dim_feedforward=32),
        TransformerDecoder(d_model=16, nhead=2, num_layers=1, dim_feedforward=32),
    )
    optimizer = Muon(vae.named_parameters())
    for parameter in vae.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    orthogonal = {n for n, p in vae.named_parameters() if "momentum" in optimizer.state[p]}
    assert len(orthogonal) == 3 * 4
    assert {n.split(".")[1] for n in orthogonal} == {"transformer"}
    assert not [n for n in orthogonal if "norm" in n or "bias" in n]


def test_shapes_are_iterated_together_and_bfloat16_is_close():
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 64, 96), (3, 64, 64), (1, 96, 64), (2, 80, 70)]
    matrices = [torch.randn(shape, generator=generator) for shape in shapes]
    alone = [orthogonalize(m, 3) for m in matrices]
    for result, expected in zip(orthogonalize_all(matrices, 3, torch.float32), alone, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    for result, expected in zip(orthogonalize_all(matrices, 3, torch.bfloat16), alone, strict=True):
        assert result.dtype == torch.bfloat16
        assert (result.float() - expected).norm() < 0.03 * expected.norm()
