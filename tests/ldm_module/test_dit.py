"""The denoiser: its symmetry, and what it depends on."""

import pytest
import torch

from src.ldm_module.denoisers import DiT
from src.utils.errors import UserError
from tests.ldm_module.conftest import SIZES


def make_dit(**arguments) -> DiT:
    torch.manual_seed(0)
    dit = DiT(4, **SIZES, **arguments)
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return dit


NUM_ATOMS = torch.tensor([2, 5, 1])
BATCH = torch.tensor([0, 0, 1, 1, 1, 1, 1, 2])
X = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
T = torch.tensor([0.1, 0.5, 0.99])


def test_a_new_denoiser_predicts_nothing():
    """So the first prediction is `skip` times the input."""
    torch.manual_seed(0)
    assert torch.equal(DiT(4, **SIZES)(X, T, NUM_ATOMS, BATCH), torch.zeros(8, 4))


def test_atoms_are_a_set():
    dit = make_dit(atom_type_input=True)
    types = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8])
    order = torch.tensor([1, 0, 5, 3, 6, 2, 4, 7])
    straight = dit(X, T, NUM_ATOMS, BATCH, atom_types=types)
    permuted = dit(X[order], T, NUM_ATOMS, BATCH, atom_types=types[order])
    torch.testing.assert_close(permuted, straight[order], atol=1e-6, rtol=1e-5)


def test_crystals_do_not_see_each_other():
    dit = make_dit()
    alone = dit(X[2:7], T[1:2], NUM_ATOMS[1:2], torch.zeros(5, dtype=torch.long))
    torch.testing.assert_close(dit(X, T, NUM_ATOMS, BATCH)[2:7], alone, atol=1e-6, rtol=1e-5)


def test_crystals_that_are_told_the_same_can_share_it():
    dit = make_dit()
    sizes, batch = torch.tensor([4, 4]), torch.arange(8) // 4
    condition = torch.full((1, 16), 0.5)
    each = dit(X, T[[0, 0]], sizes, batch, condition=condition.expand(2, -1))
    shared = dit(X, T[:1], sizes, batch, condition=condition)
    torch.testing.assert_close(shared, each)


def test_what_it_depends_on():
    dit = make_dit(atom_type_input=True)
    types = torch.ones(8, dtype=torch.long)
    reference = dit(X, T, NUM_ATOMS, BATCH, atom_types=types)
    condition = torch.zeros(3, 16)
    same = dit(X, T, NUM_ATOMS, BATCH, condition=condition, atom_types=types)
    torch.testing.assert_close(same, reference)
    condition[1] = 1
    others = {
        "time": dit(X, T + torch.tensor([0, 0.1, 0]), NUM_ATOMS, BATCH, atom_types=types),
        "condition": dit(X, T, NUM_ATOMS, BATCH, condition=condition, atom_types=types),
        "types": dit(X, T, NUM_ATOMS, BATCH, atom_types=1 + (BATCH == 1).long()),
    }
    for name, other in others.items():
        changed = (other - reference).abs().amax(1) > 1e-4
        assert changed[2:7].all(), name
        assert not changed[[0, 1, 7]].any(), name


def test_times_at_both_ends_are_finite():
    dit = make_dit()
    assert dit(X, torch.tensor([0.0, 1.0, 0.5]), NUM_ATOMS, BATCH).isfinite().all()


def test_bad_settings():
    with pytest.raises(UserError, match="activation"):
        DiT(4, activation="none")
    with pytest.raises(UserError, match="nhead"):
        DiT(4, d_model=10, nhead=3)
    with pytest.raises(UserError, match="atom_types"):
        make_dit(atom_type_input=True)(X, T, NUM_ATOMS, BATCH)
