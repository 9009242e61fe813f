import zipfile
from itertools import chain
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import pytest
import torch

from src.data import CrystalBatch, DataError, DataModule
from src.data.cif import Crystal, write_cif
from src.data.datamodule import default_cache_dir


def make_cif(index: int) -> str:
    """Crystal `index` is cubic with a = 4 + index / 100 Å, so that it can be identified."""
    crystal = Crystal(
        np.eye(3) * (4 + index / 100), np.array([11, 17]), np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]])
    )
    return write_cif(crystal, f"crystal-{index}")


def write_table(path: Path, start: int, num: int) -> None:
    rows = range(start, start + num)
    pd.DataFrame(
        {"material_id": [f"id-{i}" for i in rows], "cif": map(make_cif, rows), "gap": rows}
    ).to_csv(path, index=False)


@pytest.fixture
def tables(tmp_path) -> Path:
    folder = tmp_path / "tables"
    folder.mkdir()
    write_table(folder / "train.csv.gz", 0, 30)
    write_table(folder / "val.csv", 30, 5)
    return folder


@pytest.fixture
def options(tmp_path) -> dict:
    return {"batch_size": 8, "cache_dir": tmp_path / "cache"}


def crystals(loader) -> list[list[int]]:
    """The indices of the crystals in each batch."""
    return [((batch.lengths[:, 0] - 4) * 100).round().int().tolist() for batch in loader]


def test_a_folder_of_tables(tables, options):
    data = DataModule(tables, properties=["gap"], eval_batch_size=3, **options)
    data.prepare_data()
    train, val = crystals(data.train_dataloader()), crystals(data.val_dataloader())
    assert sorted(chain(*train)) == list(range(30))
    assert list(chain(*train)) != list(range(30))  # shuffled
    assert [len(batch) for batch in train] == [8, 8, 8, 6]
    assert val == [[30, 31, 32], [33, 34]]  # in the order of the file
    batch = next(iter(data.val_dataloader()))
    assert isinstance(batch, CrystalBatch)
    assert batch.y["gap"].tolist() == [30, 31, 32]
    assert list(data.dataset("val").ids) == [f"id-{i}" for i in range(30, 35)]
    assert data.dataset("val") is data.dataset("val")


def test_a_folder_of_cif_files(tmp_path, options):
    folder = tmp_path / "cifs"
    for i in range(20):
        path = folder / f"part-{i % 3}" / f"{i}.cif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make_cif(i))
    data = DataModule(folder, split_ratio=[0.5, 0.25, 0.25], split_seed=3, **options)
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    parts = [list(chain(*crystals(loader))) for loader in loaders]
    assert [len(part) for part in parts] == [10, 5, 5]
    assert sorted(chain(*parts)) == list(range(20))
    again = DataModule(folder, split_ratio=[0.5, 0.25, 0.25], split_seed=3, **options)
    assert crystals(again.val_dataloader()) == crystals(loaders[1])
    assert {Path(i).name for i in data.dataset("val").ids} == {str(i) for i in parts[1]}


def test_the_seed_determines_the_training_order(tables, options):
    first, again, other = (
        crystals(DataModule(tables, seed=seed, **options).train_dataloader()) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_options_reach_the_reader(tables, options, caplog):
    too_strict = DataModule(tables, max_num_atoms=1, **options)
    with pytest.raises(DataError, match="30 of 30 crystals rejected"):
        too_strict.prepare_data()
    with pytest.raises(DataError, match="outside 1 to 16"):
        DataModule(tables, max_atomic_number=16, **options).prepare_data()
    # a sqrt(3) / 2 between Na and Cl: below 3.74 Å in the first two of the five
    tolerant = DataModule(tables, min_distance=3.74, max_rejected=0.9, **options)
    assert len(tolerant.dataset("val")) == 3
    assert "2 of 5 crystals rejected" in caplog.text


def test_all_existing_splits(tables, options):
    found = DataModule(tables, max_rejected=None, min_distance=3.74, **options).datasets()
    assert {name: len(dataset) for name, dataset in found.items()} == {"train": 0, "val": 3}
    assert len(found["val"].rejected()) == 2


def test_a_single_property_need_not_be_a_list(tables, options):
    assert list(DataModule(tables, properties="gap", **options).dataset("val").y) == ["gap"]


def test_prepared_data_are_not_read_again(tables, options, caplog):
    data = DataModule(tables, min_distance=3.47, **options)
    data.prepare_data()
    data.prepare_data()
    assert caplog.text.count("1 of 30 crystals rejected") == 1


def test_a_missing_split(tables, options):
    data = DataModule(tables, **options)
    data.prepare_data()  # a missing split is not an error here
    with pytest.raises(DataError, match=r"no split 'test' \(it has train, val\): add test\.csv"):
        data.test_dataloader()


def test_the_error_for_a_missing_folder_says_what_to_do(tmp_path, options):
    for use in (DataModule.prepare_data, DataModule.train_dataloader):
        with pytest.raises(DataError, match=r"no folder .*nowhere") as error:
            use(DataModule(tmp_path / "nowhere", **options))
        message = str(error.value)
        assert "Point data.data_dir to a folder with train.csv" in message
        assert "experiment=prototypes/vae_dng" in message


def test_home_and_default_cache(tables, monkeypatch):
    monkeypatch.setenv("HOME", str(tables.parent))
    data = DataModule("~/tables", cache_dir="~/caches")
    assert data.data_dir == tables
    assert data.cache_dir == tables.parent / "caches"
    assert DataModule(tables).cache_dir == default_cache_dir()


class Recorder(lightning.LightningModule):
    """Records which crystals it is trained on, and in which epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[int]]] = []

    def training_step(self, batch: CrystalBatch) -> torch.Tensor:
        self.seen += [(self.current_epoch, crystals([batch])[0])]
        return self.weight * batch.lengths.sum()

    def validation_step(self, batch: CrystalBatch) -> None:
        assert isinstance(batch, CrystalBatch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class SaveAt(lightning.Callback):
    def __init__(self, step: int | None, path: Path) -> None:
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer: lightning.Trainer, *_) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def fit(data: DataModule, folder: Path, ckpt_path=None, save_at=None) -> list:
    trainer = lightning.Trainer(
        callbacks=[SaveAt(save_at, folder / "stopped.ckpt")],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        max_epochs=3,
    )
    model = Recorder()
    trainer.fit(model, data, ckpt_path=ckpt_path)
    return model.seen


@pytest.mark.parametrize("step", [1, 3, 4, 6, 8, 11])
def test_resumed_training_continues_with_the_remaining_batches(tables, options, tmp_path, step):
    """3 epochs of 4 batches, resumed within an epoch or after its last batch."""
    whole = fit(DataModule(tables, **options), tmp_path, save_at=step)
    for epoch in range(3):
        seen = [crystals for e, crystals in whole if e == epoch]
        assert sorted(chain(*seen)) == list(range(30))
    assert [crystals for _, crystals in whole[:4]] != [crystals for _, crystals in whole[4:8]]

    left = fit(DataModule(tables, **options), tmp_path, ckpt_path=tmp_path / "stopped.ckpt")
    assert left == whole[step:]


def test_a_property_file_for_crystals_without_properties(tmp_path, options, caplog):
    folder = tmp_path / "cifs"
    (folder / "deep").mkdir(parents=True)
    for i in range(10):
        (folder / "deep" / f"{i}.cif").write_text(make_cif(i))
    table = pd.DataFrame({"id": [f"deep/{i}" for i in range(9)], "gap": range(9)})
    table.loc[3, "gap"] = None
    table.to_csv(tmp_path / "id_prop.csv", index=False)
    given = {"properties": ["gap"], "property_file": tmp_path / "id_prop.csv", **options}
    data = DataModule(folder, split_ratio=(1, 0, 0), **given)
    batch = data.dataset("train").batch(torch.arange(10))
    expected = [float(i) for i in range(9)]
    expected[3] = -1
    assert batch.y["gap"].nan_to_num(-1).tolist() == [*expected, -1]
    assert "no row for 1 of 10 crystals of the split train, the first being deep/9" in caplog.text
    assert not DataModule(folder, **{**given, "properties": []}).dataset("train").y
    table["id"] = [f"{i}.cif" for i in range(9)]
    table.to_csv(tmp_path / "id_prop.csv", index=False)
    with pytest.raises(
        DataError,
        match=r"no row for 10 of 10 crystals of the split train, the first being deep/0: its IDs",
    ):
        DataModule(folder, split_ratio=(1, 0, 0), **given).dataset("train")
    with pytest.raises(DataError, match=r"no crystal has \['gap'\]; .* are: none"):
        DataModule(folder, properties=["gap"], **options).dataset("train")


def test_the_property_file_takes_precedence_over_columns(tables, options, caplog):
    path = tables.parent / "better.csv"
    pd.DataFrame({"id": [f"id-{i}" for i in range(35)], "gap": 7.0}).to_csv(path, index=False)
    data = DataModule(tables, properties=["gap"], property_file=path, **options)
    assert set(data.dataset("val").y["gap"].tolist()) == {7.0}
    expected = f"['gap'] are read from {path}, not from the columns of {tables / 'val.csv'}"
    assert expected in caplog.text


def test_the_choice_of_cell_reaches_the_reader(tables, options):
    shapes = {}
    for cell in ("niggli", "conventional"):
        dataset = DataModule(tables, cell=cell, **options).dataset("val")
        shapes[cell] = dataset.num_atoms.tolist()
    assert shapes["niggli"] == shapes["conventional"] == [2] * 5  # CsCl structure
    with pytest.raises(DataError, match=r"data\.cell must be one of .*, not 'smallest'"):
        DataModule(tables, cell="smallest", **options)


def test_the_pattern_selects_files_in_an_archive(tmp_path, options):
    with zipfile.ZipFile(tmp_path / "crystals.zip", "w") as archive:
        for i in range(6):
            archive.writestr(f"{i}.{'cif' if i < 4 else 'CIF'}", make_cif(i))
    for pattern, num in (("*.cif", 4), ("*", 6), ("*.cif", 4)):
        data = DataModule(tmp_path / "crystals.zip", files=pattern, **options)
        assert sum(map(len, data.datasets().values())) == num, pattern
