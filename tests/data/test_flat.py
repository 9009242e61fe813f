"""Store flat tensors on disk and read them."""

import pickle
from itertools import pairwise

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from src.data import flat
from src.data.dataset import CrystalDataset
from src.data.flat import MappedTensors, TensorWriter, ragged_index, save_tensors


@pytest.fixture
def dataset() -> CrystalDataset:
    generator = torch.Generator().manual_seed(0)
    num_atoms = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6], dtype=torch.int32)
    total = int(num_atoms.sum())
    return CrystalDataset(
        torch.randint(1, 90, (total,), generator=generator, dtype=torch.uint8),
        torch.rand(total, 3, generator=generator),
        torch.rand(8, 3, 3, generator=generator),
        num_atoms,
        [f"crystal {i}, Å" for i in range(8)],
        {"gap": torch.rand(8, generator=generator)},
    )


def test_saved_tensors_are_mapped(dataset, tmp_path):
    path = tmp_path / "crystals.safetensors"
    dataset.save(path)
    file = MappedTensors(path)
    reference = load_file(path)  # safetensors' own reader
    assert set(reference) == {*file.tensors, "ids", "y.gap"}
    for name, tensor in file.tensors.items():
        assert torch.equal(tensor, reference[name])
        assert tensor.dtype == reference[name].dtype
    assert torch.equal(file.y["gap"], dataset.y["gap"])
    assert list(file.ids) == dataset.ids
    assert len(file.ids) == 8


def test_no_crystals(tmp_path):
    path = tmp_path / "none.safetensors"
    empty = {"atom_types": torch.zeros(0, dtype=torch.uint8), "frac_coords": torch.zeros(0, 3)}
    save_tensors(path, empty, [], {})
    file = MappedTensors(path)
    assert file.tensors["frac_coords"].shape == (0, 3)
    assert list(file.ids) == []


@pytest.mark.parametrize("cuts", [[], [3], [0, 0, 1, 5, 8]])
def test_writing_in_parts_gives_the_same_file(dataset, tmp_path, cuts):
    dataset.save(tmp_path / "whole")
    ends = [0, *cuts, 8]
    with TensorWriter(tmp_path / "parts") as writer:
        for start, end in pairwise(ends):
            part = dataset.batch(torch.arange(start, end))
            tensors = {
                "atom_types": part.atom_types.to(torch.uint8), "frac_coords": part.frac_coords,
                "lattices": part.lattices, "num_atoms": part.num_atoms.int(),
            }  # fmt: skip
            writer.append(tensors, dataset.ids[start:end], part.y)
        assert not (tmp_path / "parts").exists()
    found, expected = load_file(tmp_path / "parts"), load_file(tmp_path / "whole")
    assert found.keys() == expected.keys()
    for name in found:
        assert torch.equal(found[name], expected[name])
        assert found[name].dtype == expected[name].dtype
    size = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert size["parts"] == size["whole"]
    assert len(size) == 2  # no temporary file is left


def test_rows_of_another_shape_are_refused_and_leave_no_file(tmp_path):
    def write() -> None:
        with TensorWriter(tmp_path / "file") as writer:
            writer.append({"x": torch.zeros(2, 3)}, ["a", "b"], {})
            writer.append({"x": torch.zeros(2, 4)}, ["c", "d"], {})

    with pytest.raises(ValueError, match="x changed from"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_changing_mapped_tensors_does_not_change_the_file(dataset, tmp_path):
    path = tmp_path / "crystals.safetensors"
    dataset.save(path)
    CrystalDataset.load(path).frac_coords[:] = 7.0
    assert torch.equal(CrystalDataset.load(path).frac_coords, dataset.frac_coords)


@pytest.mark.parametrize("indices", [[5], [7, 0, 3], [2, 2, 6], list(range(8)), []])
def test_rows_read_from_the_file_agree_with_the_tensors(dataset, tmp_path, monkeypatch, indices):
    path = tmp_path / "crystals.safetensors"
    dataset.save(path)
    index = torch.tensor(indices, dtype=torch.int64)
    loaded = CrystalDataset.load(path)
    assert not loaded._file.is_large
    mapped = loaded.batch(index)
    monkeypatch.setattr(flat, "LARGE", 0)
    assert loaded._file.is_large
    # so that only the file can be read
    loaded.atom_types = loaded.frac_coords = loaded.lattices = torch.empty(0)
    read = loaded.batch(index)
    for batch in (mapped, read):
        expected = dataset.batch(index)
        for name in ("atom_types", "frac_coords", "lattices", "num_atoms", "batch", "ptr"):
            assert torch.equal(batch[name], expected[name]), name
            assert batch[name].dtype == expected[name].dtype
        assert torch.equal(batch.y["gap"], expected.y["gap"])
        assert batch.max_num_atoms == expected.max_num_atoms


def test_unpickling_opens_the_file_again(dataset, tmp_path):
    path = tmp_path / "crystals.safetensors"
    dataset.save(path)
    sent = pickle.loads(pickle.dumps(CrystalDataset.load(path)))
    assert torch.equal(sent.frac_coords, dataset.frac_coords)
    assert list(sent.ids) == dataset.ids


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_a_damaged_file(dataset, tmp_path, size):
    path = tmp_path / "crystals.safetensors"
    dataset.save(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(SafetensorError):
        MappedTensors(path)


def test_ragged_index():
    starts, counts = torch.tensor([10, 0, 4]), torch.tensor([2, 3, 1])
    assert ragged_index(starts, counts, 6).tolist() == [10, 11, 0, 1, 2, 4]
