"""Check that processes that share a batch compute the same as one process."""

import pytest
import torch
from lightning import Trainer

from src.data.augmentation import (
    jitter_coords,
    mask_atom_types,
    random_rotation,
    random_translation,
)
from src.data.dataset import CrystalDataset
from src.data.loader import CrystalLoader, EpochSampler
from src.vae_module import VAEModule
from src.vae_module.decoders.transformer import TransformerDecoder
from src.vae_module.encoders.transformer import TransformerEncoder

SIZES = {"d_model": 16, "nhead": 2, "num_layers": 1, "dim_feedforward": 16}


@pytest.fixture
def dataset() -> CrystalDataset:
    generator = torch.Generator().manual_seed(0)
    num_atoms = torch.randint(1, 9, (23,), generator=generator)
    total = int(num_atoms.sum())
    return CrystalDataset(
        torch.randint(1, 90, (total,), generator=generator, dtype=torch.uint8),
        torch.rand(total, 3, generator=generator),
        5 * torch.eye(3) + torch.rand(23, 3, 3, generator=generator),
        num_atoms,
    )


def loaders(dataset, world_size: int, shuffle: bool = True) -> list[CrystalLoader]:
    batch_size = 6 // world_size
    return [
        CrystalLoader(dataset, EpochSampler(len(dataset), batch_size, shuffle, 3, rank, world_size))
        for rank in range(world_size)
    ]


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize(
    "change",
    [
        random_translation,
        random_rotation,
        lambda batch, generator: mask_atom_types(batch, 0.3, generator),
        lambda batch, generator: jitter_coords(batch, 0.5, 0.1, generator),
    ],
    ids=["translation", "rotation", "mask", "jitter"],
)
def test_augmentations_do_not_depend_on_the_number_of_processes(dataset, world_size, change):
    def changed(batch):
        return change(batch, torch.Generator().manual_seed(7))

    (one,) = loaders(dataset, 1)
    many = loaders(dataset, world_size)
    for whole, *parts in zip(one, *many, strict=True):
        expected, found = changed(whole), [changed(part) for part in parts]
        for name in ("atom_types", "frac_coords", "lattices"):
            assert torch.equal(torch.cat([part[name] for part in found]), expected[name]), name


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_mean_gradient_is_that_of_the_whole_batch(dataset, world_size):
    torch.manual_seed(0)
    # latent noise needs communication between processes: see tests/test_distributed.py
    vae = VAEModule(
        TransformerEncoder(**SIZES),
        TransformerDecoder(**SIZES),
        mask_ratio=0.2,
        latent_noise=0,
    )
    vae._trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    vae.on_fit_start()

    def step(batch) -> tuple[float, torch.Tensor]:
        vae.zero_grad()
        loss = vae.training_step(batch, 0)
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in vae.parameters()])

    whole = next(iter(loaders(dataset, 1)[0]))
    parts = [next(iter(loader)) for loader in loaders(dataset, world_size)]
    loss, gradient = step(whole)
    losses, gradients = zip(*map(step, parts), strict=True)
    assert max(losses) - min(losses) > 0.01  # the parts differ more than their mean does
    assert sum(losses) / world_size == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(torch.stack(gradients).mean(0), gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("num", "world_size"), [(23, 2), (25, 2), (25, 3), (24, 3), (7, 4), (4, 4)]
)
def test_each_crystal_is_validated_once(num, world_size):
    samplers = [EpochSampler(num, 6, False, 0, rank, world_size) for rank in range(world_size)]
    batches = [list(sampler) for sampler in samplers]
    assert {len(each) for each in batches} == {len(samplers[0])}
    assert all(len(indices) for each in batches for indices in each)
    assert sorted(i for each in batches for indices in each for i in indices.tolist()) == list(
        range(num)
    )


def test_fewer_crystals_than_processes():
    with pytest.raises(ValueError, match="3 crystals are too few for 4 processes"):
        next(iter(EpochSampler(3, 6, False, 0, 0, 4)))
