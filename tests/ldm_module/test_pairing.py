"""Noise is permuted within crystals, to where it is nearest."""

from itertools import permutations

import torch

from src.ldm_module.pairing import PAIRINGS, nearest


def draw(batch):
    return torch.randn(2, len(batch.batch), 3, generator=torch.Generator().manual_seed(0))


def cost(x_1, noise):
    return ((x_1 - noise) ** 2).sum().item()


def test_no_permutation_is_nearer(batch):
    x_1, noise = draw(batch)
    paired = nearest(x_1, noise, batch, False)
    for crystal, n in ((0, 1), (1, 4)):
        mine = batch.batch == crystal
        best = min(cost(x_1[mine], noise[mine][list(p)]) for p in permutations(range(n)))
        assert abs(cost(x_1[mine], paired[mine]) - best) < 1e-4


def test_each_crystal_keeps_its_noise(batch):
    x_1, noise = draw(batch)
    paired = nearest(x_1, noise, batch, False)
    assert not torch.equal(paired, noise)
    for crystal in range(3):
        mine = batch.batch == crystal
        torch.testing.assert_close(paired[mine].sort(0).values, noise[mine].sort(0).values)


def test_given_types_keep_their_noise(batch):
    x_1, noise = draw(batch)
    paired = nearest(x_1, noise, batch, True)
    assert not torch.equal(paired, noise)
    for crystal in range(3):
        for number in batch.atom_types.unique():
            mine = (batch.batch == crystal) & (batch.atom_types == number)
            torch.testing.assert_close(paired[mine].sort(0).values, noise[mine].sort(0).values)


def test_as_drawn(batch):
    x_1, noise = draw(batch)
    assert PAIRINGS["as_drawn"](x_1, noise, batch, False) is noise
