from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

from src.data.augmentation import (
    jitter_coords,
    mask_atom_types,
    quaternions_to_rotations,
    random_rotation,
    random_translation,
)
from src.data.schema import CrystalBatch

AUGMENTATIONS: dict[str, Callable[..., CrystalBatch]] = {
    "translation": random_translation,
    "rotation": random_rotation,
    "masking": partial(mask_atom_types, ratio=0.5),
    "jitter": partial(jitter_coords, ratio=0.5, std=0.1),
}
FIELDS = ("atom_types", "frac_coords", "lattices", "num_atoms", "batch", "ptr")
SKEWED = Lattice.from_parameters(3, 6, 11, 65, 110, 75)


def make_batch(num_crystals: int = 5, seed: int = 0) -> CrystalBatch:
    rng = np.random.default_rng(seed)
    structures = []
    for _ in range(num_crystals):
        n = int(rng.integers(1, 8))
        structures.append(Structure(SKEWED, rng.integers(1, 90, n).tolist(), rng.random((n, 3))))
    batch = CrystalBatch.from_structures(structures)
    batch.y = {"energy": torch.arange(float(num_crystals))}
    return batch


def large_batch(num_atoms: int) -> CrystalBatch:
    """One crystal in a skewed cell; all atoms have the same type."""
    return CrystalBatch.from_tensors(
        torch.full((num_atoms,), 6),
        torch.rand(num_atoms, 3, generator=torch.Generator().manual_seed(0)),
        torch.tensor(SKEWED.matrix, dtype=torch.float32)[None],
        torch.tensor([num_atoms]),
    )


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_are_pure_and_reproducible(name):
    augment, batch = AUGMENTATIONS[name], make_batch()
    before = {field: batch[field].clone() for field in FIELDS}
    global_state = torch.get_rng_state()
    first = augment(batch, generator=seeded(1))
    again = augment(batch, generator=seeded(1))
    other = augment(batch, generator=seeded(2))

    assert all(torch.equal(batch[field], value) for field, value in before.items())
    assert torch.equal(torch.get_rng_state(), global_state)
    assert all(torch.equal(first[field], again[field]) for field in FIELDS)
    changed = [field for field in FIELDS if not torch.equal(first[field], batch[field])]
    assert changed == [field for field in FIELDS if not torch.equal(first[field], other[field])]
    assert len(changed) == 1  # only one field changes
    assert first[changed[0]].dtype == batch[changed[0]].dtype
    assert first.y["energy"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_without_a_generator_the_global_seed_is_used(name):
    augment, batch = AUGMENTATIONS[name], make_batch()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = augment(batch)
        torch.manual_seed(3)
        again = augment(batch)
    assert all(torch.equal(first[field], again[field]) for field in FIELDS)


def test_translation_keeps_periodic_distances():
    batch = make_batch()
    moved = random_translation(batch, seeded(0))
    for before, after in zip(batch.to_structure(), moved.to_structure(), strict=True):
        np.testing.assert_allclose(after.distance_matrix, before.distance_matrix, atol=1e-5)


def test_translation_is_one_uniform_shift_for_each_crystal():
    num = 5000
    batch = CrystalBatch.from_tensors(
        torch.ones(2 * num, dtype=torch.int64),
        torch.tensor([[0.0, 0.0, 0.0], [0.25, 0.5, 0.75]]).repeat(num, 1),
        torch.eye(3).expand(num, 3, 3),
        torch.full((num,), 2),
    )
    moved = random_translation(batch, seeded(0)).frac_coords.reshape(num, 2, 3)
    offset = moved[:, 1] - moved[:, 0] - torch.tensor([0.25, 0.5, 0.75])
    torch.testing.assert_close(offset, offset.round(), rtol=0, atol=1e-6)
    # The mean of 5000 uniform numbers has a standard deviation of 0.004; their variance is 1/12.
    torch.testing.assert_close(moved[:, 0].mean(0), torch.full((3,), 0.5), rtol=0, atol=0.02)
    torch.testing.assert_close(moved[:, 0].var(0), torch.full((3,), 1 / 12), rtol=0.05, atol=0)


def test_translation_of_wrapped_coordinates_stays_wrapped():
    moved = random_translation(large_batch(300_000), seeded(0)).frac_coords
    assert moved.min() >= 0
    assert moved.max() < 1


def test_rotation_keeps_lengths_angles_and_handedness():
    batch = make_batch()
    turned = random_rotation(batch, seeded(0))
    torch.testing.assert_close(turned.lengths, batch.lengths, rtol=1e-5, atol=0)
    torch.testing.assert_close(turned.angles, batch.angles, rtol=0, atol=1e-4)
    volumes = torch.linalg.det(batch.lattices)
    torch.testing.assert_close(torch.linalg.det(turned.lattices), volumes, rtol=1e-5, atol=0)
    for before, after in zip(batch.to_structure(), turned.to_structure(), strict=True):
        np.testing.assert_allclose(after.distance_matrix, before.distance_matrix, atol=1e-4)


def test_rotations_are_orthogonal_and_uniform():
    rotations = quaternions_to_rotations(torch.randn(20_000, 4, generator=seeded(0)))
    identity = torch.eye(3).expand_as(rotations)
    torch.testing.assert_close(rotations @ rotations.mT, identity, rtol=0, atol=1e-5)
    determinants = torch.linalg.det(rotations)
    torch.testing.assert_close(determinants, torch.ones(20_000), rtol=0, atol=1e-5)
    # Each entry is the cosine between two axes: uniform in [-1, 1], with a variance of 1/3.
    # The mean of 20,000 has a standard deviation of 0.004.
    assert rotations.mean(0).abs().max() < 0.02
    assert (rotations.var(0) - 1 / 3).abs().max() < 0.01
    # The density of the angle of a uniform rotation is (1 - cos) / pi: its mean is pi/2 + 2/pi
    # (Euler angles drawn uniformly would fail here).
    trace = rotations.diagonal(dim1=1, dim2=2).sum(-1)
    angle = ((trace - 1) / 2).clamp(-1, 1).acos()
    assert angle.mean().item() == pytest.approx(np.pi / 2 + 2 / np.pi, abs=0.02)


@pytest.mark.parametrize("ratio", [0.0, 0.15, 1.0])
def test_fraction_of_masked_atoms(ratio):
    batch = large_batch(50_000)
    masked = mask_atom_types(batch, ratio, seeded(0)).atom_types
    assert set(masked.unique().tolist()) <= {0, 6}
    assert (masked == 0).float().mean().item() == pytest.approx(ratio, abs=0.01)


@pytest.mark.parametrize(("ratio", "std"), [(1.0, 0.1), (0.3, 0.5), (0.0, 0.5)])
def test_jitter_is_isotropic_in_a_skewed_cell(ratio, std):
    batch = large_batch(50_000)
    displacement = jitter_coords(batch, ratio, std, seeded(0)).cart_coords - batch.cart_coords
    moved = displacement.norm(dim=1) > 1e-5
    assert moved.float().mean().item() == pytest.approx(ratio, abs=0.01)
    if ratio:
        covariance = displacement[moved].T.cov()
        expected = std**2 * torch.eye(3)
        torch.testing.assert_close(covariance, expected, rtol=0.05, atol=0.03 * std**2)
