"""Training, evaluation and download find the same files for each split."""

import bz2
import gzip
import json
import logging
import lzma
import shutil
import zipfile
from functools import cache
from pathlib import Path

import ase.io
import numpy as np
import pandas as pd
import pytest
from ase.db import connect
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from src.commands.evaluate_generated import Reference, find_reference, read_crystals
from src.data import DataError, DataModule
from src.data.cif import Crystal, write_cif
from src.data.readers import SPLIT_NAMES, SPLITS
from src.data.sources import download, needs_download
from src.data.split_files import (
    SUFFIXES,
    find_split,
    find_splits,
    find_splits_csv,
    folders_with_splits,
)
from src.data.splits import SplitOptions, find_readers, look_up_splits
from src.data.structures import StructureReader, formats, to_atoms, to_structure

ROOT = Path(__file__).resolve().parents[2]
OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
# Each split has a different number of crystals, which identifies it in every format.
SIZES = {"train": 5, "val": 2, "test": 3}


def make_crystals(split: str) -> list[Crystal]:
    start = 4 + SPLITS.index(split)
    lengths = [start + i / 50 for i in range(SIZES[split])]
    coords = np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]])
    return [Crystal(length * np.eye(3), np.array([11, 17]), coords) for length in lengths]


def write(path: Path, split: str) -> Path:
    """Write the crystals of a split as a folder, or as a file in the format given by its name."""
    crystals = make_crystals(split)
    names = [f"{split}-{i}" for i in range(len(crystals))]
    cifs = [write_cif(*pair) for pair in zip(crystals, names, strict=True)]
    atoms = [to_atoms(*pair) for pair in zip(crystals, names, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in OPENERS:  # write the plain file, then pack it
        plain = write(path.parent / "plain" / path.stem, split)
        with OPENERS[path.suffix](path, "wb") as file:
            file.write(plain.read_bytes())
        shutil.rmtree(plain.parent)
        return path
    suffix = path.suffix
    table = pd.DataFrame({"material_id": names, "cif": cifs})
    if suffix == "":
        path.mkdir()
        for name, cif in zip(names, cifs, strict=True):
            (path / f"{name}.cif").write_text(cif)
    elif suffix == ".csv":
        table.to_csv(path, index=False)
    elif suffix == ".parquet":
        table.to_parquet(path)
    elif suffix == ".db":
        with connect(path, use_lock_file=False) as database:
            for each, name in zip(atoms, names, strict=True):
                database.write(each, material_id=name)
    elif suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, cif in zip(names, cifs, strict=True):
                archive.writestr(f"{name}.cif", cif)
    elif suffix == ".traj":
        ase.io.write(path, atoms)
    else:
        with path.open("w") as file:
            dictionaries = [to_structure(crystal).as_dict() for crystal in crystals]
            if suffix == ".json":
                json.dump(dictionaries, file)
            elif suffix in (".jsonl", ".ndjson"):
                file.writelines(f"{json.dumps(each)}\n" for each in dictionaries)
            elif suffix == ".cif":
                file.writelines(cifs)
            else:
                ase.io.write(file, atoms, format="extxyz")
    return path


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


@cache
def shipped_config(*overrides: str) -> DictConfig:
    """The config of `train_vae data=structures`."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train_vae", overrides=["data=structures", *overrides])


def shipped_data(folder: Path, *overrides: str) -> DataModule:
    paths = {"data_dir": str(folder), "cache_dir": str(folder.parent / "cache")}
    return instantiate(shipped_config(*overrides).data, **paths)


def sizes(data: DataModule) -> dict[str, int]:
    return {split: len(dataset) for split, dataset in data.datasets().items()}


def num_compared(reference: Reference) -> int:
    return len(reference.crystals(read_crystals))


# The same splits everywhere


PLAIN = [suffix for suffix in SUFFIXES if suffix.count(".") == 1]
SOME_PACKED = [
    ".csv.gz",
    ".parquet.xz",
    ".extxyz.bz2",
    ".xyz.gz",
    ".json.gz",
    ".db.bz2",
    ".traj.xz",
]


@pytest.mark.parametrize("suffix", [*PLAIN, *SOME_PACKED, ".cif", ".cif.gz", ""])
def test_training_and_evaluation_find_the_same(tmp_path, suffix):
    """In every format, compressed or not, and in folders."""
    folder = tmp_path / "mine"
    paths = {split: write(folder / f"{split}{suffix}", split) for split in SPLITS}
    touch(folder, "README.md", ".train.csv", "._train.csv")
    assert find_splits(folder) == paths
    assert sizes(shipped_data(folder)) == SIZES
    for split in SPLITS:
        reference = find_reference(folder, split)
        assert reference == Reference(paths[split])
        assert num_compared(reference) == SIZES[split]


def test_suffixes_include_all_formats_for_many_crystals():
    """All suffixes that StructureReader knows, except those for a single crystal."""
    single = {".cif", ".mcif", ".vasp", ".poscar", ".contcar", ".res", ".ins", ".pdb", ".ent"}
    assert set(formats._FORMATS) - single <= set(PLAIN)
    packed = {f"{suffix}{each}" for suffix in PLAIN for each in OPENERS if suffix != ".zip"}
    assert set(SUFFIXES) == {*PLAIN, *packed}


@pytest.mark.parametrize("name", [*SPLIT_NAMES, "Train", "VALID", "Test"])
@pytest.mark.parametrize("suffix", [".csv", ".PARQUET"])
def test_spellings(tmp_path, name, suffix):
    touch(tmp_path, f"{name}{suffix}")
    assert find_splits(tmp_path) == {SPLIT_NAMES[name.lower()]: tmp_path / f"{name}{suffix}"}


def test_spellings_are_read(tmp_path):
    folder = tmp_path / "mine"
    names = {"train": "Train.csv", "val": "valid.csv.gz", "test": "TESTING.CSV"}
    for split, name in names.items():
        write(folder / name.lower(), split).rename(folder / name)
    assert sizes(shipped_data(folder)) == SIZES
    assert find_reference(folder, "Valid") == Reference(folder / "valid.csv.gz")


def test_a_missing_split(tmp_path):
    folder = tmp_path / "mine"
    for split in ("train", "val"):
        write(folder / f"{split}.parquet", split)
    message = (
        r"mine has no split 'test' \(it has train \(train\.parquet\), val \(val\.parquet\)\): "
        r"choose one of these with test_reference_split, add test\.csv, or give the path of a file"
    )
    with pytest.raises(DataError, match=message):
        find_reference(folder, "test", "test_reference_split")
    with pytest.raises(DataError, match=r"no split 'test' \(it has train, val\): add test\.csv"):
        shipped_data(folder).dataset("test")
    with pytest.raises(
        DataError, match=r"reference_split=all is not a split: choose one of train, val"
    ):
        find_reference(folder, "all", "reference_split")
    assert find_reference(folder, None) == Reference(folder)  # whatever splits there are


def test_all_crystals_are_used_with_a_warning_if_there_are_no_splits(tmp_path, caplog):
    folder = write(tmp_path / "mine", "train")
    assert find_split(folder, "train") is None
    assert find_reference(folder, "train") == Reference(folder)
    assert f"{folder} contains no splits: all its crystals are used" in caplog.text
    caplog.clear()
    (file,) = [path for path in folder.iterdir() if path.stem == "train-0"]
    assert find_reference(file, "train") == Reference(file)
    assert caplog.text == ""


# Two candidates


@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "train.csv.gz"),
        ("train.csv", "train.parquet"),
        ("train.extxyz", "train.extxyz.gz", "train.json"),
        ("Train.csv", "train.parquet"),
        ("train.csv", "training.csv"),
        ("train.db", "train.zip"),
    ],
)
def test_two_candidates_are_an_error(tmp_path, names):
    folder = tmp_path / "mp_20"
    for i, name in enumerate(names):
        write(folder / name.lower(), SPLITS[i]).rename(folder / name)
    write(folder / "val.csv", "val")
    for find in (
        lambda: find_splits(folder),
        lambda: find_reference(folder, "train"),
        lambda: find_reference(folder, "val"),
        lambda: shipped_data(folder).prepare_data(),
        lambda: shipped_data(folder, "data.split_by=composition").prepare_data(),
        lambda: download("mp_20", folder, "file:///nowhere"),
        lambda: needs_download("mp_20", folder),
    ):
        with pytest.raises(DataError, match=r"candidates for the split 'train': ") as error:
            find()
        assert str(folder) in str(error.value)
        assert all(name in str(error.value) for name in names)
        assert "Keep one and delete the others or move them" in str(error.value)


def test_val_and_valid_are_the_same_split(tmp_path):
    touch(tmp_path, "train.csv", "val.csv", "valid.csv", "test.csv")
    with pytest.raises(DataError, match=r"2 candidates for the split 'val': val\.csv and valid"):
        find_splits(tmp_path)


def test_a_file_and_a_folder_for_the_same_split(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.csv", split)
        write(tmp_path / split, split)
    with pytest.raises(DataError, match=r"for the split 'train': train and train\.csv"):
        find_splits(tmp_path)
    shutil.rmtree(tmp_path / "train")  # now `test` is not the folder of a split
    assert find_splits(tmp_path)["test"] == tmp_path / "test.csv"


def test_a_broken_link_is_a_candidate(tmp_path):
    write(tmp_path / "train.csv.gz", "train")
    (tmp_path / "train.csv").symlink_to(tmp_path / "gone.csv")
    with pytest.raises(DataError, match=r"train\.csv and train\.csv\.gz"):
        find_splits(tmp_path)


def test_a_file_and_its_gz_with_the_same_content_are_one_candidate(tmp_path):
    """As after `gzip --keep` or `gunzip --keep`."""
    folder = tmp_path / "mine"
    for split in SPLITS:
        plain = write(folder / f"{split}.csv", split)
        (folder / f"{split}.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert find_splits(folder) == {split: folder / f"{split}.csv" for split in SPLITS}
    assert sizes(shipped_data(folder)) == SIZES
    content = (folder / "train.csv").read_bytes()
    for edited in (content[:-1], content + b"\n", content.replace(b"Na", b"Li")):
        (folder / "train.csv").write_bytes(edited)
        with pytest.raises(DataError, match=r"train\.csv and train\.csv\.gz"):
            find_splits(folder)
    (folder / "train.csv").write_bytes(content)
    (folder / "train.csv.gz").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"train\.csv and train\.csv\.gz"):
        find_splits(folder)


def test_other_files_are_not_candidates(tmp_path):
    names = [
        *("train.csv.lock", "train.csv.part", "train.csv.partial", "train.csv.bak", "train.csv~"),
        *("._train.csv", ".train.csv", "train_ori.pt", "train.pt", "train.lmdb", "train.txt"),
        *("train-old.csv", "train (1).csv", "train.csv.dvc", "mp_20.zip", "pretrain.csv"),
        *("train.py", "train.yaml", "train.log", "splits.csv", "train.db-journal"),
    ]
    touch(tmp_path, "train.csv", *names)
    touch(tmp_path / ".download", "train.csv.part")
    touch(tmp_path / "train")  # an empty folder
    touch(tmp_path / "test")
    assert find_splits(tmp_path) == {"train": tmp_path / "train.csv"}
    assert find_splits(tmp_path / "nowhere") == {}
    assert find_splits(tmp_path / "train.csv") == {}


def test_the_downloader_accepts_existing_splits_in_any_format(tmp_path, caplog):
    folder = tmp_path / "mp_20"
    for split in SPLITS:
        write(folder / f"{split}.parquet", split)
    assert download("mp_20", folder, "file:///nowhere") == []
    assert not needs_download("mp_20", folder)
    text = "train.parquet differs from the published file of mp_20, but is used anyway"
    assert text in caplog.text


# Names that are not those of splits by themselves


def test_a_crystal_may_be_called_test(tmp_path):
    folder = tmp_path / "mine"
    for name in ("a", "b", "test"):
        write(folder / f"{name}.cif", "test")
    assert find_splits(folder) == {}
    assert find_readers(folder) == StructureReader(folder, (), "*.cif")
    write(folder / "train.cif", "train")
    assert list(find_splits(folder)) == ["train", "test"]
    assert find_splits(folder, "*.vasp") == {}


def test_a_folder_may_be_called_test(tmp_path):
    folder = tmp_path / "mine"
    write(folder / "test", "test")
    write(folder / "oxides", "val")
    assert find_splits(folder) == {}
    touch(folder / "train", "log.txt")
    assert find_splits(folder, "*.cif") == {}
    write(folder / "train" / "deep", "train")
    assert list(find_splits(folder, "*.cif")) == ["train", "test"]


def test_folders_are_read_by_the_pattern_and_ignored_with_split_by(tmp_path):
    folder = tmp_path / "mine"
    for split in SPLITS:
        write(folder / split, split)
        touch(folder / split, "notes.txt")
    data = shipped_data(folder, "data.files=*.cif")
    assert sizes(data) == SIZES
    assert list(data.dataset("val").ids) == ["val-0", "val-1"]
    by_composition = shipped_data(folder, "data.files=*.cif", "data.split_by=composition")
    assert sizes(by_composition) == {"train": 10}  # all are NaCl
    splits_file = by_composition.splits_file
    assert splits_file is not None
    train = find_reference(folder, "train", split_file=splits_file)
    assert train == Reference(folder, splits_file, "train")
    assert num_compared(train) == 10


# splits.csv


@pytest.fixture
def cif_folder(tmp_path) -> Path:
    """A folder of single crystals with a `splits.csv`."""
    folder = write(tmp_path / "mine", "train")
    splits = ["train", "test", "train", "val", "test"]
    rows = "".join(f"train-{i},train-{i}.cif,{split},\n" for i, split in enumerate(splits))
    (folder / "splits.csv").write_text(f"id,file,split,group\n{rows}")
    return folder


def test_the_splits_csv_of_a_folder(cif_folder, caplog):
    path = cif_folder / "splits.csv"
    assert find_splits_csv(cif_folder) == path
    with caplog.at_level(logging.INFO):
        data = shipped_data(cif_folder)
        assert {name: list(each.ids) for name, each in data.datasets().items()} == {
            "train": ["train-0", "train-2"], "val": ["train-3"], "test": ["train-1", "train-4"],
        }  # fmt: skip
    assert f"Using the splits in {path}" in caplog.text
    assert data.splits_file == path
    assert data.rejected() == []  # splits.csv is not treated as a damaged crystal
    for split, num in {"train": 2, "val": 1, "test": 2}.items():
        reference = find_reference(cif_folder, split)
        assert num_compared(reference) == num
        assert str(reference) == f"{cif_folder} ({split} of {path})"
    assert "contains no splits" not in caplog.text


def test_options_take_precedence_over_a_splits_csv(cif_folder, tmp_path):
    by_composition = shipped_data(cif_folder, "data.split_by=composition")
    assert sizes(by_composition) == {"train": 5}
    other = tmp_path / "other.csv"
    shutil.copy(by_composition.splits_file, other)
    assert num_compared(find_reference(cif_folder, "train", split_file=other)) == 5
    with pytest.raises(DataError, match=r"other\.csv lists no crystal of .* in the split 'test'"):
        find_reference(cif_folder, "test", split_file=other).crystals(read_crystals)


def test_a_splits_csv_that_does_not_match_the_data(cif_folder, caplog):
    (cif_folder / "new.cif").write_text((cif_folder / "train-0.cif").read_text())
    with pytest.raises(
        DataError, match=r"splits\.csv does not match .* Only in the data: 1 crystal: new"
    ):
        shipped_data(cif_folder).prepare_data()
    # training may have rejected it
    assert num_compared(find_reference(cif_folder, "train")) == 2
    assert "1 of 6 crystals" in caplog.text
    (cif_folder / "train-0.cif").unlink()
    with pytest.raises(DataError, match=r"which lack 1 crystal: train-0 \(train-0\.cif\)"):
        find_reference(cif_folder, "train").crystals(read_crystals)
    (cif_folder / "splits.csv").write_text("material_id,split\ntrain-0,train\n")
    for use in (
        shipped_data(cif_folder).prepare_data,
        lambda: look_up_splits(cif_folder / "splits.csv", []),
    ):
        with pytest.raises(DataError, match=r"not a readable splits\.csv with the columns id, fi"):
            use()


def test_a_table_of_crystals_may_be_called_splits_csv(tmp_path):
    folder = tmp_path / "mine"
    write(folder / "splits.csv", "train")
    assert find_splits_csv(folder) is None
    assert sum(sizes(shipped_data(folder)).values()) == SIZES["train"]
    assert num_compared(find_reference(folder, "train")) == SIZES["train"]


def test_the_splits_csv_of_a_run_identifies_the_training_crystals(tmp_path):
    """Here those of a single file, split by one of its columns."""
    tables = [pd.read_csv(write(tmp_path / f"{s}.csv", s)).assign(fold=s) for s in SPLITS]
    table = tmp_path / "all" / "mine.csv"
    table.parent.mkdir()
    pd.concat(tables).to_csv(table, index=False)
    data = shipped_data(table, "data.split_by=column", "data.split_column=fold")
    assert sizes(data) == SIZES
    for split in SPLITS:
        assert (
            num_compared(find_reference(table, split, split_file=data.splits_file)) == SIZES[split]
        )
    with pytest.raises(
        DataError, match=r"already contains splits, such as train\.csv: leave out split_f"
    ):
        find_reference(tmp_path, "train", split_file=data.splits_file)


# Splits in subfolders


def test_folders_with_splits():
    files = [
        "a/train.csv",
        "a/test.csv",
        "b/test.csv",
        "c/train/x.cif",
        "c/dev/deep/y.cif",
        "z.cif",
    ]
    assert folders_with_splits(files) == ["a", "c"]
    assert folders_with_splits(["train.csv", "val.csv"]) == ["."]
    assert folders_with_splits(["train.txt", "test.txt", "train.cif", "test.cif"]) == []


@pytest.mark.parametrize("packed", [True, False])
def test_splits_that_would_be_pooled(tmp_path, caplog, packed):
    inner = tmp_path / "outer" / "mp_20"
    for split in ("train", "test"):
        write(inner / f"{split}.csv", split)
    source = inner.parent
    if packed:
        source = Path(shutil.make_archive(str(tmp_path / "set"), "zip", inner.parent))
    with pytest.raises(
        DataError, match=r"would pool the splits in .*mp_20: give the path of that fol"
    ):
        find_reference(source, "train", "reference_split")
    assert num_compared(find_reference(source, None, "reference_split")) == 8
    assert sum(sizes(shipped_data(source)).values()) == 8
    assert (
        f"{source}: mp_20 contains splits, which are ignored: all crystals are pooled"
        in caplog.text
    )
    caplog.clear()
    assert find_readers(source, pattern="*", options=SplitOptions("composition"))
    assert caplog.text == ""
