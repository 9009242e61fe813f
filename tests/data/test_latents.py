import json
import platform
from pathlib import Path

import numpy as np
import pytest
import torch

from src.data import flat
from src.data.latents import LatentDataset, collate, pad, unpad
from src.data.loader import CrystalLoader, EpochSampler
from src.data.readers import DataError


def make_latents(num: int = 23, width: int = 3, seed: int = 0) -> LatentDataset:
    """Crystal i has 1 + i % 4 atoms and the property value i; the channels differ in scale."""
    generator = torch.Generator().manual_seed(seed)
    num_atoms = (torch.arange(num) % 4 + 1).int()
    total = int(num_atoms.sum())
    scale = 10.0 ** torch.arange(width)
    return LatentDataset(
        mean=5 + scale * torch.randn(total, width, generator=generator),
        logvar=torch.randn(total, width, generator=generator) - 3,
        atom_types=torch.randint(1, 90, (total,), generator=generator).byte(),
        num_atoms=num_atoms,
        ids=[f"crystal-{i}" for i in range(num)],
        y={"index": torch.arange(num).float()},
    )


def write(folder: Path, latents: LatentDataset, split: str = "train") -> Path:
    latents.save(folder / f"{split}.safetensors")
    if split == "train":
        (folder / "stats.json").write_text(json.dumps(latents.moments()))
    return folder


def test_save_and_load(tmp_path):
    latents = make_latents()
    write(tmp_path, latents)
    for path in (tmp_path, str(tmp_path), tmp_path / "train.safetensors"):
        loaded = LatentDataset.load(path)
        for name in ("mean", "logvar", "atom_types", "num_atoms"):
            found, expected = getattr(loaded, name), getattr(latents, name)
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)
        assert list(loaded.ids) == latents.ids
        assert loaded.y["index"].tolist() == list(range(23))
        assert loaded.latent_dim == 3
        assert len(loaded) == 23


def test_files_have_the_usual_permissions(tmp_path):
    write(tmp_path, make_latents())
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_rows_of_a_large_file_are_read_directly(tmp_path, monkeypatch):
    loaded = LatentDataset.load(write(tmp_path, make_latents()))
    indices = torch.tensor([7, 2, 2, 22, 0])
    expected = make_latents().batch(indices)
    monkeypatch.setattr(flat, "LARGE", 0)
    # so that only the file can be read
    loaded.mean = loaded.logvar = loaded.atom_types = torch.empty(0)
    found = loaded.batch(indices)
    for name in ("mean", "logvar", "atom_types", "num_atoms", "batch"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.max_num_atoms == expected.max_num_atoms


def test_a_batch_has_the_crystals_in_the_given_order():
    latents = make_latents()
    parts = latents.mean.split(latents.num_atoms.tolist())
    types = latents.atom_types.split(latents.num_atoms.tolist())
    indices = torch.tensor([7, 2, 2, 22, 0])
    batch = latents.batch(indices)
    assert torch.equal(batch.mean, torch.cat([parts[i] for i in indices]))
    assert batch.atom_types.tolist() == torch.cat([types[i] for i in indices]).tolist()
    assert batch.atom_types.dtype == batch.num_atoms.dtype == torch.int64
    assert batch.num_atoms.tolist() == [4, 3, 3, 3, 1]
    assert batch.batch.tolist() == [0] * 4 + [1] * 3 + [2] * 3 + [3] * 3 + [4]
    assert batch.max_num_atoms == 4
    assert batch.y["index"].tolist() == [7, 2, 2, 22, 0]
    assert torch.equal(latents[-1].mean, parts[-1])
    with pytest.raises(IndexError):
        latents[23]


def test_a_loader_iterates_over_all_crystals():
    latents = make_latents()
    loader = CrystalLoader(latents, EpochSampler(len(latents), 5, shuffle=True, seed=1))
    seen = torch.cat([batch.y["index"] for batch in loader])
    assert seen.tolist() != sorted(seen.tolist())
    assert sorted(seen.tolist()) == list(range(23))
    assert len(loader) == 5


def test_samples_follow_the_posterior():
    latents = make_latents(num=4)
    batch = latents.batch(torch.arange(4))
    generator = torch.Generator().manual_seed(0)
    samples = torch.stack([batch.sample(generator) for _ in range(4000)]).double()
    torch.testing.assert_close(
        samples.std(0), (0.5 * batch.logvar.double()).exp(), rtol=0.05, atol=0
    )
    torch.testing.assert_close(samples.mean(0), batch.mean.double(), rtol=0, atol=0.1)
    assert torch.equal(batch.mode(), latents.mean)
    again = [batch.sample(torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*again)


def test_moments_agree_with_numpy():
    latents = make_latents(num=2000)
    mean = latents.mean.numpy().astype(np.float64)
    found = latents.moments()
    np.testing.assert_allclose(found["mean"], mean.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found["std"], mean.std(axis=0), rtol=1e-12)
    variance = np.exp(latents.logvar.numpy().astype(np.float64)).mean(axis=0)
    np.testing.assert_allclose(found["posterior_std"], np.sqrt(variance), rtol=1e-12)


def test_moments_do_not_depend_on_the_chunks(monkeypatch):
    latents = make_latents(num=100)
    whole = latents.moments()
    monkeypatch.setattr("src.data.latents._CHUNK", 7)
    for name, values in latents.moments().items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-12)


def test_a_small_spread_around_a_large_mean_is_precise():
    """In float32, or as a difference of mean squares, it would be lost to rounding."""
    latents = make_latents(num=1000)
    noise = torch.randn(latents.mean.shape, generator=torch.Generator().manual_seed(1)).double()
    latents.mean = (1e4 + 1e-2 * noise).float()
    exact = latents.mean.numpy().astype(np.float64).std(axis=0)
    np.testing.assert_allclose(latents.moments()["std"], exact, rtol=1e-9)
    np.testing.assert_allclose(exact, 1e-2, rtol=0.1)


def test_normalized_samples_have_mean_0_and_variance_1(tmp_path):
    latents = make_latents(num=4000)
    latents.mean[:, 0] = 0.0  # a channel without information
    latents = LatentDataset.load(write(tmp_path, latents))
    batch = latents.batch(torch.arange(4000))
    x = latents.normalize(batch.sample(torch.Generator().manual_seed(0)))
    np.testing.assert_allclose(x.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(x.std(0), 1, atol=0.05)
    back = latents.denormalize(latents.normalize(batch.mean))
    torch.testing.assert_close(back, batch.mean, rtol=1e-5, atol=1e-5)


def test_other_splits_are_normalized_by_the_training_split(tmp_path):
    write(write(tmp_path, make_latents()), make_latents(seed=1), "val")
    train, val = (LatentDataset.load(tmp_path, split) for split in ("train", "val"))
    assert torch.equal(val.normalize(val.mean), train.normalize(val.mean))


def test_moving_a_batch_to_another_device():
    batch = make_latents().batch(torch.arange(3))
    moved = batch.to("meta")
    tensors = [moved.mean, moved.logvar, moved.atom_types, moved.num_atoms, moved.batch]
    assert {t.device.type for t in [*tensors, moved.y["index"]]} == {"meta"}
    assert batch.mean.device.type == "cpu"
    assert moved.max_num_atoms == 3


def resident(path: Path) -> tuple[int, int]:
    """Bytes of a file that are mapped into this process, and how many of them are in memory."""
    mapped = memory = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):  # header of a mapping
            inside = line.endswith(str(path))
        elif inside and name == "Size:":
            mapped += 1024 * int(rest[0])
        elif inside and name == "Rss:":
            memory += 1024 * int(rest[0])
    return mapped, memory


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
def test_unread_data_stay_on_disk(tmp_path):
    atoms = 1_000_000
    LatentDataset(
        mean=torch.ones(atoms, 8),
        logvar=torch.ones(atoms, 8),
        atom_types=torch.ones(atoms, dtype=torch.uint8),
        num_atoms=torch.full((atoms // 100,), 100),
    ).save(tmp_path / "train.safetensors")
    latents = LatentDataset.load(tmp_path)
    latents.batch(torch.tensor([5, 9_000]))
    mapped, memory = resident(tmp_path / "train.safetensors")
    assert mapped > 64e6
    assert memory < mapped / 4  # the system reads some megabytes ahead
    assert latents.mean.sum() == 8 * atoms
    # reading everything shows that the measurement works
    assert resident(tmp_path / "train.safetensors")[1] > 30e6


def test_errors_name_the_file(tmp_path):
    with pytest.raises(DataError, match=r"no file .*train\.safetensors .*: none\)"):
        LatentDataset.load(tmp_path)
    write(tmp_path, make_latents())
    with pytest.raises(DataError, match=r"test\.safetensors \(splits in that folder: train\)"):
        LatentDataset.load(tmp_path, "test")
    path = tmp_path / "train.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"train\.safetensors is damaged"):
        LatentDataset.load(tmp_path)
    path.write_bytes(b"not a tensor")
    with pytest.raises(DataError, match="damaged or does not contain latents"):
        LatentDataset.load(tmp_path)
    write(tmp_path, make_latents())
    (tmp_path / "stats.json").unlink()
    with pytest.raises(DataError, match="moments of the training split are missing"):
        LatentDataset.load(tmp_path).normalize(torch.zeros(1, 3))


def test_collated_and_padded_batches_have_the_same_atoms():
    latents = make_latents()
    indices = torch.tensor([2, 0, 7])
    joined, expected = collate([latents[i] for i in indices.tolist()]), latents.batch(indices)
    for name in ("mean", "logvar", "atom_types", "num_atoms", "batch"):
        assert torch.equal(getattr(joined, name), getattr(expected, name))
    assert joined.max_num_atoms == expected.max_num_atoms == 4
    assert joined.y["index"].tolist() == [2, 0, 7]
    padded, mask = pad(joined.mean, joined.num_atoms)
    assert padded.shape == (3, 4, 3)
    assert mask.sum(dim=1).tolist() == [3, 1, 4]
    assert not padded[~mask].any()
    assert torch.equal(unpad(padded, mask), joined.mean)
