"""Splits given by files or columns, and splits made at random, by composition or prototype."""

import csv
import logging
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.core import Lattice, Structure

from src.data import DataError, DataModule
from src.data.cif import Crystal, write_cif
from src.data.dataset import ReadOptions, load_split
from src.data.readers import SPLITS, CsvReader
from src.data.splits import (
    COLUMNS,
    SplitOptions,
    assign_splits,
    find_readers,
    formula,
    prototype,
    read_splits,
    split_crystals,
    write_splits,
)
from src.data.structures import StructureReader, to_crystal, write_structures
from tests.crystals import rock_salt

SHIFT = np.array([0.1, 0.5, 0.77])
PEROVSKITE = [[0, 0, 0], [0.5] * 3, [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]


def cubic(a: float, *species: str) -> Structure:
    """The CsCl structure or a cubic perovskite, or as many of its atoms as there are species."""
    return Structure(Lattice.cubic(a), species, PEROVSKITE[: len(species)])


def make_folder(folder: Path, num: int = 40) -> Path:
    """CIFs at two depths: each formula four times, in slightly different cells."""
    pairs = [(a, b) for a in ("Na", "K", "Rb", "Cs", "Li") for b in ("F", "Cl", "Br", "I")]
    for i in range(num):
        structure = cubic(3.5 + i / 100, *pairs[i // 4])
        write_structures(folder / ("deep" if i % 2 else "") / f"{i:02d}.cif", [structure], ["x"])
    return folder


def make(data_dir: Path, cache_dir: Path, **options) -> DataModule:
    return DataModule(data_dir, cache_dir=cache_dir, **options)


def splits_of(data: DataModule) -> dict[str, list[str]]:
    data.prepare_data()
    return {split: list(data.dataset(split).ids) for split in SPLITS if split in data._datasets}


def written(cache_dir: Path) -> Path:
    (path,) = cache_dir.glob("*/*/splits.csv")
    return path


def rows_of(path: Path) -> list[dict]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# Which readers


def write_table(path: Path, **columns) -> Path:
    text = write_cif(Crystal(np.eye(3) * 4, np.array([11]), np.zeros((1, 3))), "x")
    frame = pd.DataFrame({"material_id": ["a", "b"], "cif": [text] * 2, **columns})
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return path


def test_a_folder_with_splits_is_read_as_it_is_split(tmp_path):
    write_table(tmp_path / "train.csv", gap=[1, 2])
    write_table(tmp_path / "val.parquet")
    write_table(tmp_path / "test.csv.gz")
    write_structures(tmp_path / "other.cif", [cubic(4, "Na")], ["x"])
    assert find_readers(tmp_path, ["gap"]) == {
        "train": CsvReader(tmp_path / "train.csv", ("gap",)),
        "val": CsvReader(tmp_path / "val.parquet", ("gap",)),
        "test": CsvReader(tmp_path / "test.csv.gz", ("gap",)),
    }
    with pytest.raises(DataError, match=r"already contains the splits train, val, test: remove"):
        find_readers(tmp_path, options=SplitOptions("composition"))
    with pytest.raises(DataError, match=r"no split has a column \['energy'\]; .* are: gap"):
        find_readers(tmp_path, ["energy", "gap"])


def test_splits_in_other_formats(tmp_path):
    for i, split in enumerate(SPLITS):
        structures = [cubic(4 + i, "Na"), cubic(5 + i, "K")]
        write_structures(tmp_path / f"{split}.extxyz", structures, [f"{split}0", f"{split}1"])
    data = make(tmp_path, tmp_path / "cache")
    assert splits_of(data) == {split: [f"{split}0", f"{split}1"] for split in SPLITS}
    assert data.dataset("test").y == {}


def test_real_tables(shared_data):
    readers = find_readers(shared_data / "perov_5", ("heat_all",))  # train has no such column
    assert isinstance(readers, dict)
    assert list(readers) == list(SPLITS)
    record = next(iter(readers["test"]))
    assert "_cell_length_a" in record.cif
    assert len(record.properties) == 1


def test_anything_else_is_read_by_one_reader(tmp_path):
    folder = make_folder(tmp_path / "cifs", 4)
    assert find_readers(folder) == StructureReader(folder, (), "*.cif")
    table = write_table(tmp_path / "mine.csv")
    assert find_readers(table) == StructureReader(table, (), "*.cif")


def test_folders_without_crystals(tmp_path):
    with pytest.raises(DataError, match=r"There is no folder .*nowhere.*Point data\.data_dir"):
        find_readers(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"contains neither train\.csv .* nor any file \*\.cif"):
        find_readers(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SplitOptions(ratio=(0.8, 0.2)), "split_ratio must be three numbers"),
        (SplitOptions(ratio=(0.5, 0.6, -0.1)), "split_ratio"),
        (SplitOptions(ratio=(0, 0, 0)), "split_ratio"),
        (SplitOptions(ratio=(0.5, float("nan"), 0.5)), "split_ratio"),
        (SplitOptions("colour"), "data.split_by must be one of random, column"),
        (SplitOptions("column"), r"split_by=column and data\.split_column=\.\.\. must be given"),
        (SplitOptions("random", file=Path("s.csv")), r"split_by=file and data\.split_file"),
    ],
)
def test_invalid_options(tmp_path, options, message):
    make_folder(tmp_path, 4)
    with pytest.raises(DataError, match=message):
        find_readers(tmp_path, options=options)


# Making splits


def test_splits_have_the_requested_sizes():
    for total in (10, 33, 100, 1001):
        counts = np.bincount(assign_splits(np.arange(total), (0.8, 0.1, 0.1), 0), minlength=3)
        assert counts.sum() == total
        assert np.abs(counts - total * np.array([0.8, 0.1, 0.1])).max() < 1
    assert np.bincount(assign_splits(np.arange(20), (5, 3, 2), 0)).tolist() == [10, 6, 4]
    assert set(assign_splits(np.arange(7), (0, 0, 1), 0).tolist()) == {2}


def test_groups_stay_together_and_a_split_exceeds_its_share_by_less_than_a_group():
    rng = np.random.default_rng(0)
    for seed in range(20):
        groups = rng.zipf(1.5, 500).clip(max=60)
        split_indices = assign_splits(groups, (0.7, 0.2, 0.1), seed)
        assert all(len(set(split_indices[groups == group])) == 1 for group in set(groups))
        excess = np.bincount(split_indices, minlength=3) - 500 * np.array([0.7, 0.2, 0.1])
        assert excess.max() < np.bincount(groups).max()
        assert (assign_splits(groups, (7, 2, 1), seed) == split_indices).all()
    assert (
        assign_splits(np.arange(99), (1, 1, 1), 1) != assign_splits(np.arange(99), (1, 1, 1), 2)
    ).any()


@pytest.mark.parametrize("by", ["random", "composition", "prototype"])
def test_splits_depend_on_the_seed_only_and_contain_all_crystals(tmp_path, by):
    folder = make_folder(tmp_path / "cifs")
    ratio = (0.5, 0.3, 0.2)
    first = splits_of(make(folder, tmp_path / "1", split_by=by, split_ratio=ratio))
    again = splits_of(make(folder, tmp_path / "2", split_by=by, split_ratio=ratio))
    assert first == again
    assigned = list(chain(*first.values()))
    assert sorted(assigned) == sorted([f"{'deep/' if i % 2 else ''}{i:02d}" for i in range(40)])
    if by == "prototype":  # all have the CsCl structure
        assert list(first) == ["train"]
        return
    other = splits_of(make(folder, tmp_path / "1", split_by=by, split_ratio=ratio, split_seed=1))
    assert other != first
    assert {split: len(ids) for split, ids in first.items()} == {"train": 20, "val": 12, "test": 8}
    split_of = {int(id_[-2:]) // 4: split for split, ids in first.items() for id_ in ids}
    together = all(split_of[int(i[-2:]) // 4] == s for s, ids in first.items() for i in ids)
    assert together is (by == "composition")


def test_crystals_are_read_once_for_all_splits(tmp_path, caplog):
    folder, cache = make_folder(tmp_path / "cifs"), tmp_path / "cache"
    with caplog.at_level(logging.INFO):
        for by in ("random", "composition", "random"):
            splits_of(make(folder, cache, split_by=by))
    assert caplog.text.count("Read 40 crystals of") == 1
    assert caplog.text.count("Split by ") == 2
    path = next(cache.glob("*/random*/splits.csv"))
    assert caplog.text.count(f"Using the splits in {path}") == 1
    assert len(list(cache.glob("*/*/splits.csv"))) == 2
    path = next(cache.glob("*/composition*/splits.csv"))
    expected = f"Split by composition into 32 train, 4 val and 4 test crystals; see {path}"
    assert expected in caplog.text


def test_an_empty_split(tmp_path):
    folder = make_folder(tmp_path / "cifs", 4)
    data = make(folder, tmp_path / "cache", split_ratio=(1, 0, 0))
    assert len(data.dataset("train")) == 4
    with pytest.raises(DataError, match=r"no split 'val' \(it has train\)"):
        data.dataset("val")


# splits.csv


def test_splits_are_written_next_to_the_cache(tmp_path):
    folder, cache = make_folder(tmp_path / "cifs"), tmp_path / "cache"
    found = splits_of(make(folder, cache, split_by="composition"))
    rows = rows_of(written(cache))
    assert (written(cache).parents[1] / "crystals.safetensors").is_file()
    assert tuple(rows[0]) == COLUMNS
    assert {split: [r["id"] for r in rows if r["split"] == split] for split in SPLITS} == found
    assert all(row["file"] == f"{row['id']}.cif" for row in rows)
    assert {row["group"] for row in rows if row["id"] == "00"} == {"NaF"}
    assert [path.name for path in written(cache).parent.iterdir()] == ["splits.csv"]


def test_existing_splits_are_used_again(tmp_path):
    folder, cache = make_folder(tmp_path / "cifs"), tmp_path / "cache"
    before = splits_of(make(folder, cache, split_by="composition", split_seed=7))
    path = tmp_path / "splits.csv"
    path.write_bytes(written(cache).read_bytes())
    again = splits_of(make(folder, tmp_path / "new", split_by="file", split_file=path))
    assert again == before

    rows = rows_of(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]))
    with pytest.raises(
        DataError, match=r"Only in the data: 2 crystals: .* Only in the file: no crystals\."
    ) as error:
        splits_of(make(folder, cache, split_by="file", split_file=path))
    assert f"{rows[-1]['id']} ({rows[-1]['file']})" in str(error.value)
    path.write_text("".join([*lines, "new,new.cif,val,\n"]))
    with pytest.raises(DataError, match=r"Only in the file: 1 crystal: new \(new\.cif\)\."):
        splits_of(make(folder, cache, split_by="file", split_file=path))
    path.write_text("".join(lines).replace(",val,", ",nowhere,"))
    with pytest.raises(
        DataError, match=r"line \d+: the split is 'nowhere', but must be one of train"
    ):
        splits_of(make(folder, cache, split_by="file", split_file=path))
    for text in ("", "a,b\n1,2\n"):
        path.write_text(text)
        with pytest.raises(DataError):
            splits_of(make(folder, cache, split_by="file", split_file=path))
    with pytest.raises(DataError, match=r"splits\.csv is not a readable"):
        splits_of(make(folder, cache, split_by="file", split_file=tmp_path / "no" / "splits.csv"))


def test_crystals_with_the_same_id_and_file_keep_their_order(tmp_path):
    keys = [("x", "a.csv"), ("x", "a.csv"), ("x", "b.csv")]
    write_splits(tmp_path / "splits.csv", keys, np.array([2, 0, 1]), [""] * 3)
    assert read_splits(tmp_path / "splits.csv", keys).tolist() == [2, 0, 1]


def test_damaged_splits_are_recreated(tmp_path, caplog):
    folder, cache = make_folder(tmp_path / "cifs"), tmp_path / "cache"
    before = splits_of(make(folder, cache))
    content = written(cache).read_bytes()
    written(cache).write_bytes(content[:200])
    assert splits_of(make(folder, cache)) == before
    assert "Splitting the data again: " in caplog.text
    assert written(cache).read_bytes() == content


# By column


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_splits_by_column(tmp_path, suffix):
    path = write_table(tmp_path / f"mine{suffix}", gap=[1.5, None], split=["Train", "valid"])
    data = make(
        path, tmp_path / "cache", properties=["gap"], split_by="column", split_column="split"
    )
    assert splits_of(data) == {"train": ["a"], "val": ["b"]}
    assert list(data.dataset("val").y) == ["gap"]
    assert data.dataset("train").y["gap"].tolist() == [1.5]
    assert torch.isnan(data.dataset("val").y["gap"]).all()
    assert [row["split"] for row in rows_of(written(tmp_path / "cache"))] == ["train", "val"]


def test_the_error_names_an_unknown_split_and_its_row(tmp_path):
    path = write_table(tmp_path / "mine.csv", fold=["train", "extra"])
    options = {"split_by": "column"}
    with pytest.raises(DataError, match=r"mine\.csv row 1: 'fold' is 'extra', .*: train, training"):
        make(path, tmp_path / "cache", split_column="fold", **options).dataset("train")
    with pytest.raises(DataError, match=r"mine\.csv row 0: 'split' is missing"):
        make(path, tmp_path / "cache", split_column="split", **options).dataset("train")


# Groups


def test_formulas():
    assert formula(to_crystal(cubic(4, "Na", "Cl"))) == "NaCl"
    doubled = cubic(4, "Na", "Cl")
    doubled.make_supercell([2, 1, 1])
    assert formula(to_crystal(doubled)) == "NaCl"


def perturbed(structure: Structure, distance: float, seed: int = 0) -> Structure:
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(len(structure), 3))
    steps *= distance / np.linalg.norm(steps, axis=1, keepdims=True)
    return Structure(
        structure.lattice, structure.species, structure.cart_coords + steps,
        coords_are_cartesian=True,
    )  # fmt: skip


def test_a_prototype_does_not_depend_on_elements_cell_or_origin():
    names = set()
    rocksalt = rock_salt(5.6, "Na", "Cl")
    for structure in (rocksalt, rocksalt.get_primitive_structure(), rocksalt * (1, 2, 1)):
        for swap in ({}, {"Na": "O", "Cl": "Mg"}):
            other = structure.copy()
            other.replace_species(swap)
            moved = Structure(other.lattice, other.species, other.frac_coords + SHIFT)
            names |= {prototype(to_crystal(s)) for s in (other, moved, perturbed(moved, 0.01))}
    assert names == {"AB 225 4(-3mm) 4(-3mm)"}
    perovskite = cubic(3.9, "Sr", "Ti", "O", "O", "O")
    moved = Structure(perovskite.lattice, perovskite.species, perovskite.frac_coords + 0.5)
    assert prototype(to_crystal(moved)) == prototype(to_crystal(perovskite)) not in names
    assert prototype(to_crystal(cubic(4, "Cs", "Cl"))) not in names
    distorted = prototype(to_crystal(perturbed(perovskite, 0.3)))
    assert distorted != prototype(to_crystal(perovskite))


def test_a_prototype_without_symmetry_is_the_formula():
    same = Crystal(np.eye(3) * 4, np.array([11, 11]), np.zeros((2, 3)))
    assert prototype(same) == "Na without symmetry"


def test_real_crystals_by_prototype(tmp_path, shared_data):
    rows = pd.read_csv(shared_data / "mp_20" / "test.csv.gz", nrows=300)
    rows.to_csv(tmp_path / "mine.csv", index=False)
    for by in ("composition", "prototype"):
        options = SplitOptions(by)
        reader = find_readers(tmp_path / "mine.csv", options=options)
        assert isinstance(reader, StructureReader)
        dataset = load_split(reader, ReadOptions(), tmp_path / "cache")
        splits = split_crystals(dataset, reader, options)
        assert sum(map(len, splits.values())) == 300
        table = rows_of(next((tmp_path / "cache").glob(f"*/{by}*/splits.csv")))
        sizes = Counter(row["group"] for row in table)
        assert len({(row["group"], row["split"]) for row in table}) == len(sizes)
        excess = [
            len(splits[s]) - 300 * share for s, share in zip(SPLITS, options.ratio, strict=True)
        ]
        assert max(excess) < max(sizes.values())
