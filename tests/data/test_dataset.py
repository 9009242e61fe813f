import csv
import gzip
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch_geometric.data import Data

from src.data import parsing
from src.data.cif import Crystal, read_cif, write_cif
from src.data.dataset import (
    CrystalDataset,
    ReadOptions,
    _cache_key,
    load_split,
    read_crystals,
)
from src.data.flat import TensorWriter
from src.data.readers import CsvReader, DataError
from src.data.schema import CrystalBatch
from src.data.structures import StructureReader

TENSORS = ("atom_types", "frac_coords", "lattices", "num_atoms")

GOOD = """data_{name}
_cell_length_a 4
_cell_length_b 5
_cell_length_c 6
_cell_angle_alpha 90
_cell_angle_beta 100
_cell_angle_gamma 90
loop_
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Na 0.0 0.0 0.0 1
Cl 0.5 0.5 0.5 1
"""

BAD = {
    "partial": (GOOD.replace("0.5 1", "0.5 0.5"), "occupancy 0.5"),
    "unknown": (GOOD.replace("Cl", "Xy"), "'Xy' is not an element"),
    "overlap": (GOOD.replace("0.5 0.5 0.5", "0.05 0.0 0.0"), "0.200 Å apart"),
    "too_many": (GOOD + "O 0.5 0.0 0.0 1\nO 0.0 0.5 0.0 1\n", "4 atoms: more than 3"),
    "heavy": (GOOD.replace("Cl", "Fm"), "atomic number 100 is outside 1 to 99"),
    "no_cell": (GOOD.replace("_cell_length_a 4\n", ""), "_cell_length_a is missing"),
    "empty": ("", "empty CIF"),
    "prose": ("not a crystal at all", "not valid CIF"),
}


def make_crystals(num: int, seed: int = 0) -> list[Crystal]:
    """Crystals of 1 to 5 well-separated atoms in skewed cells."""
    rng = np.random.default_rng(seed)
    corners = np.stack(np.meshgrid(*3 * [[0.1, 0.6]]), -1).reshape(8, 3)
    crystals = []
    for _ in range(num):
        n = int(rng.integers(1, 6))
        lattice = np.diag(rng.uniform(4, 8, 3)) + np.tril(rng.uniform(-1, 1, (3, 3)), -1)
        frac_coords = rng.permutation(corners)[:n] + rng.uniform(0, 0.1, (n, 3))
        crystals.append(Crystal(lattice, rng.integers(1, 90, n), frac_coords))
    return crystals


def write_table(path: Path, num: int = 12, bad: tuple[str, ...] = (), seed: int = 0) -> CsvReader:
    cifs = [write_cif(c, f"c{i}") for i, c in enumerate(make_crystals(num, seed))]
    ids = [f"id-{i}" for i in range(num)]
    frame = pd.DataFrame(
        {
            "material_id": [*ids, *bad],
            "cif": [*cifs, *(BAD[name][0] for name in bad)],
            "gap": [*(i / 2 if i != 3 else None for i in range(num)), *(9.0 for _ in bad)],
        }
    )
    frame.to_csv(path, index=False)
    return CsvReader(path, ("gap",))


@pytest.fixture
def reader(tmp_path) -> CsvReader:
    return write_table(tmp_path / "train.csv")


@pytest.fixture
def cache_dir(tmp_path) -> Path:
    return tmp_path / "cache"


def caches(cache_dir: Path) -> list[Path]:
    return sorted(path for path in cache_dir.iterdir() if path.suffix == "" and path.is_dir())


def assert_same(a: CrystalDataset, b: CrystalDataset) -> None:
    assert list(a.ids) == list(b.ids)
    assert a.y.keys() == b.y.keys()
    for name in TENSORS:
        assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert getattr(a, name).dtype == getattr(b, name).dtype, name
    for name in a.y:
        assert torch.equal(a.y[name].nan_to_num(-1), b.y[name].nan_to_num(-1))


# --- from records to tensors -----------------------------------------------------------------


@pytest.mark.parametrize("cell", ["niggli", "as_given"])
def test_crystals_agree_with_read_cif(reader, cell):
    dataset, rejected = read_crystals(reader, ReadOptions(cell))
    assert rejected == []
    assert list(dataset.ids) == [f"id-{i}" for i in range(12)]
    assert dataset.y["gap"][:3].tolist() == [0, 0.5, 1]
    assert dataset.y["gap"].isnan().nonzero().flatten().tolist() == [3]
    expected = [read_cif(record.cif, niggli=cell == "niggli") for record in reader]
    for i, crystal in enumerate(expected):
        data = dataset[i]
        assert data.atom_types.tolist() == crystal.atom_types.tolist()
        assert (data.frac_coords.numpy() == crystal.frac_coords.astype(np.float32)).all()
        assert (data.lattices[0].numpy() == crystal.lattice.astype(np.float32)).all()
    assert dataset.nbytes == sum(13 * c.num_atoms + 36 + 4 + 4 for c in expected)


def test_the_cache_returns_the_same_tensors(reader, cache_dir):
    expected, _ = read_crystals(reader, ReadOptions())
    made = load_split(reader, ReadOptions(), cache_dir)
    loaded = load_split(reader, ReadOptions(), cache_dir)
    assert_same(made, expected)
    assert_same(loaded, expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_cache_made_in_chunks(tmp_path, cache_dir, monkeypatch, num_workers):
    reader = write_table(tmp_path / "train.csv", num=20, bad=("partial", "overlap"))
    expected, rejected = read_crystals(reader, ReadOptions())
    monkeypatch.setattr(parsing, "CHUNK", 3)
    assert_same(load_split(reader, ReadOptions(), cache_dir, 0.5, num_workers), expected)
    again, rejected_again = read_crystals(reader, ReadOptions(), num_workers=num_workers)
    assert_same(again, expected)
    assert rejected_again == rejected
    assert [record.id for record, _ in rejected] == ["partial", "overlap"]


GROWTH = """
import sys
from pathlib import Path
from src.data import parsing
from src.data.dataset import ReadOptions, load_split
from src.data.readers import Record
parsing.CHUNK = 16

class Repeated:
    source, files, properties = Path(sys.argv[1]), (), ()
    def __iter__(self):
        cif = self.source.read_text()
        for i in range(int(sys.argv[3])):
            yield Record(f"row {i}", str(i), cif + f"# {i} " + "x" * 200_000)

load_split(Repeated(), ReadOptions(cell="as_given"), Path(sys.argv[2]))
print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**10)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory in /proc")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_records(tmp_path):
    """Each record has 200 kB, so 400 more of them have 80 MB."""
    (tmp_path / "one.cif").write_text(GOOD.format(name="x"))
    peaks = []
    for num in (50, 450):
        arguments = [str(tmp_path / "one.cif"), str(tmp_path / str(num)), str(num)]
        done = subprocess.run(
            [sys.executable, "-c", GROWTH, *arguments],
            cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks.append(float(done.stdout.split()[-1]))
    assert peaks[1] - peaks[0] < 40


def test_real_crystals(shared_data, tmp_path):
    rows = pd.read_csv(shared_data / "mp_20" / "test.csv.gz", nrows=300)
    rows.to_csv(tmp_path / "test.csv.gz", index=False)
    reader = CsvReader(tmp_path / "test.csv.gz", ("formation_energy_per_atom",))
    dataset = load_split(reader, ReadOptions(max_num_atoms=20), tmp_path / "cache")
    assert len(dataset) == 300
    assert list(dataset.ids) == rows["material_id"].tolist()
    structures = dataset.batch(torch.arange(300)).to_structure()
    volumes = [float(cif.split("_cell_volume")[1].split()[0]) for cif in rows["cif"]]
    # Niggli reduction does not change the volume of the cell in a P1 file
    np.testing.assert_allclose([s.volume for s in structures], volumes, rtol=1e-4)


def test_a_census_counts_crystals_by_size_and_atoms_by_element(tmp_path):
    structures = [
        CrystalBatch.from_tensors(
            torch.tensor(types), torch.zeros(len(types), 3), torch.eye(3)[None],
            torch.tensor([len(types)]),
        ).get_example(0)
        for types in ([11, 17], [8, 8, 8, 22, 38], [8, 12], [26])
    ]  # fmt: skip
    dataset = CrystalDataset.from_batch(CrystalBatch.from_data_list(structures))
    expected = {
        "num_crystals": 4,
        "num_atoms": {"1": 1, "2": 2, "5": 1},
        "elements": {"8": 4, "11": 1, "12": 1, "17": 1, "22": 1, "26": 1, "38": 1},
    }
    assert dataset.census() == expected
    assert json.loads(json.dumps(dataset.census())) == expected
    assert dataset.subset(torch.tensor([3, 0])).census()["elements"] == {"11": 1, "17": 1, "26": 1}


def test_the_census_of_a_cache_has_plain_types(reader, cache_dir):
    census = load_split(reader, ReadOptions(), cache_dir).census()
    crystals = [read_cif(record.cif) for record in reader]
    assert census["num_crystals"] == 12
    sizes, types = [c.num_atoms for c in crystals], np.concatenate([c.atom_types for c in crystals])
    assert census["num_atoms"] == {str(n): sizes.count(n) for n in set(sizes)}
    assert census["elements"] == {str(z): int((types == z).sum()) for z in set(types)}
    counts = [census["num_crystals"], *census["num_atoms"].values(), *census["elements"].values()]
    assert {type(count) for count in counts} == {int}


# --- batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "indices", [[0, 1, 2], [11, 3, 7, 0], [5, 5, 2, 5], [4], list(range(12)), [-1, 0], []]
)
def test_a_batch_has_the_same_crystals_as_indexing(reader, indices):
    dataset, _ = read_crystals(reader, ReadOptions())
    batch = dataset.batch(torch.tensor(indices, dtype=torch.int64))
    assert isinstance(batch, CrystalBatch)
    assert batch.num_graphs == len(indices)
    assert batch.max_num_atoms == max((int(dataset.num_atoms[i]) for i in indices), default=0)
    assert batch.atom_types.dtype == batch.num_atoms.dtype == torch.int64
    crystals = [dataset[i] for i in indices]
    assert all(type(crystal) is Data for crystal in crystals)
    for got, expected in zip(batch.to_data_list(), crystals, strict=True):
        for name in TENSORS:
            assert torch.equal(got[name], expected[name])
        assert torch.equal(got.y["gap"].nan_to_num(-1), expected.y["gap"].nan_to_num(-1))


def test_indexing(reader):
    dataset, _ = read_crystals(reader, ReadOptions())
    assert len(dataset) == 12
    assert torch.equal(dataset[-1].frac_coords, dataset[11].frac_coords)
    for index in (12, -13):
        with pytest.raises(IndexError):
            dataset[index]


def test_from_batch_to_and_pickle(reader):
    dataset, _ = read_crystals(reader, ReadOptions())
    batch = dataset.batch(torch.arange(12))
    again = CrystalDataset.from_batch(batch)
    assert list(again.ids) == [str(i) for i in range(12)]
    picked = torch.tensor([7, 1])
    expected = dataset.batch(picked)
    for other in (again, dataset.to("cpu"), pickle.loads(pickle.dumps(dataset))):
        assert torch.equal(other.batch(picked).frac_coords, expected.frac_coords)
        assert torch.equal(other.batch(picked).y["gap"], expected.y["gap"])
    assert list(dataset.to("cpu").ids) == list(dataset.ids)


# --- the cache -------------------------------------------------------------------------------


def test_cache_is_reused(reader, cache_dir, caplog):
    with caplog.at_level(logging.INFO):
        load_split(reader, ReadOptions(), cache_dir)
        (folder,) = caches(cache_dir)
        before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        load_split(reader, ReadOptions(), cache_dir)
    assert before.keys() == {"crystals.safetensors", "manifest.json", "rejected.csv"}
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert caplog.text.count("Read 12 crystals of") == 1
    assert not list(cache_dir.glob("*.partial"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("crystals.safetensors", flip),
        ("crystals.safetensors", truncate),
        ("crystals.safetensors", Path.unlink),
        ("rejected.csv", flip),
        ("rejected.csv", Path.unlink),
        ("manifest.json", truncate),
        ("manifest.json", Path.unlink),
        ("manifest.json", lambda path: path.write_text("[]")),
        ("manifest.json", lambda path: path.write_text('{"sha256": "from another version"}')),
    ],
)
def test_a_damaged_cache_is_recreated(reader, cache_dir, caplog, name, damage):
    expected, _ = read_crystals(reader, ReadOptions())
    load_split(reader, ReadOptions(), cache_dir)
    (folder,) = caches(cache_dir)
    damage(folder / name)
    with caplog.at_level(logging.WARNING):
        assert_same(load_split(reader, ReadOptions(), cache_dir), expected)
    assert f"The cache {folder} is damaged and will be recreated" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert_same(load_split(reader, ReadOptions(), cache_dir), expected)
    assert caplog.text == ""


def test_each_option_and_content_has_its_own_cache(reader, cache_dir, tmp_path):
    options = ReadOptions()
    variants = [
        options,
        replace(options, cell="as_given"),
        replace(options, max_num_atoms=20),
        replace(options, max_atomic_number=95),
        replace(options, min_distance=0.4),
    ]
    assert set(asdict(options)) == {"cell", "max_num_atoms", "max_atomic_number", "min_distance"}
    for variant in variants:
        load_split(reader, variant, cache_dir)
    load_split(CsvReader(reader.path), options, cache_dir)  # without the property
    assert len(caches(cache_dir)) == 6
    other = write_table(tmp_path / "train.csv", seed=1)
    expected, _ = read_crystals(other, options)
    assert_same(load_split(other, options, cache_dir), expected)
    assert len(caches(cache_dir)) == 7


@pytest.fixture
def versions(monkeypatch) -> dict[str, str]:
    """Versions of packages to report instead of the installed ones."""
    given: dict[str, str] = {}
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: given.get(name) or real(name))
    return given


CIF_READERS = {"gemmi", "numpy", "spglib"}
TABLE_READERS = {*CIF_READERS, "pandas", "pyarrow"}
OTHER_READERS = {*CIF_READERS, "ase", "pymatgen", "pymatgen-core"}


@pytest.mark.parametrize(
    ("name", "packages"),
    [
        ("x.csv.gz", TABLE_READERS),
        ("x.parquet", TABLE_READERS),
        ("x.cif", CIF_READERS),
        ("x.cif.gz", CIF_READERS),
        ("x.extxyz", OTHER_READERS),
        ("x.json", OTHER_READERS),
        ("x.db", OTHER_READERS),
        ("POSCAR", OTHER_READERS),
        ("x.traj", OTHER_READERS),
        ("x.zip", {*TABLE_READERS, *OTHER_READERS}),
    ],
)
def test_the_cache_depends_on_the_packages_that_read_the_file(tmp_path, versions, name, packages):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).touch()
    reader = StructureReader(tmp_path / "data")
    key = _cache_key(reader, ReadOptions())
    assert _cache_key(reader, ReadOptions()) == key
    changing = set()
    for package in {*TABLE_READERS, *OTHER_READERS, "torch", "hydra-core"}:
        versions[package] = "1.0.of.tomorrow"
        if _cache_key(reader, ReadOptions()) != key:
            changing.add(package)
        del versions[package]
    assert changing == packages


def test_the_cache_of_another_version_is_not_modified(reader, cache_dir, versions, caplog):
    load_split(reader, ReadOptions(), cache_dir)
    (folder,) = caches(cache_dir)
    (folder / "crystals.safetensors").write_bytes(b"a cell that another spglib found")
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    (cache_dir / ("0" * 32)).mkdir()
    (cache_dir / ("0" * 32) / "manifest.json").write_text("of long ago")
    versions["spglib"] = "99.0"
    expected, _ = read_crystals(reader, ReadOptions())
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert_same(load_split(reader, ReadOptions(), cache_dir), expected)
    assert caplog.text.count("Read 12 crystals of") == 1
    assert "damaged" not in caplog.text
    assert len(caches(cache_dir)) == 3
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept


def test_a_package_that_is_not_installed_has_no_version(reader):
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    key = _cache_key(reader, ReadOptions())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metadata, "version", missing)
        assert _cache_key(reader, ReadOptions()) != key


def test_a_moved_folder_finds_its_cache(reader, cache_dir, tmp_path, caplog):
    load_split(reader, ReadOptions(), cache_dir)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(reader.path, elsewhere)
    with caplog.at_level(logging.INFO):
        load_split(CsvReader(elsewhere / "train.csv", ("gap",)), ReadOptions(), cache_dir)
    assert caplog.text == ""


def test_a_moved_cif_file_gets_its_new_id(tmp_path, cache_dir):
    folder = tmp_path / "cifs"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "x.cif").write_text(GOOD.format(name="x"))
    reader = StructureReader(folder)
    assert list(load_split(reader, ReadOptions(), cache_dir).ids) == ["a/x"]
    (folder / "a").rename(folder / "b")
    reader = StructureReader(folder)
    assert list(load_split(reader, ReadOptions(), cache_dir).ids) == ["b/x"]


# --- rejected crystals ---------------------------------------------------------------------


def test_rejected_rows_are_listed_with_their_reasons(tmp_path, cache_dir, caplog):
    reader = write_table(tmp_path / "train.csv", num=12, bad=tuple(BAD))
    options = ReadOptions(max_num_atoms=3)
    expected = [read_cif(r.cif) for r in reader if r.id.startswith("id-")]
    kept = [i for i, crystal in enumerate(expected) if crystal.num_atoms <= 3]
    for _ in range(2):  # reusing the cache warns as well
        caplog.clear()
        dataset = load_split(reader, options, cache_dir, max_rejected=0.9)
        assert f"{20 - len(kept)} of 20 crystals rejected" in caplog.text
    assert list(dataset.ids) == [f"id-{i}" for i in kept]
    assert dataset.y["gap"].nan_to_num(1.5).tolist() == [i / 2 for i in kept]

    (folder,) = caches(cache_dir)
    with (folder / "rejected.csv").open(newline="", encoding="utf-8") as file:
        rejected = {row["material_id"]: row for row in csv.DictReader(file)}
    assert rejected.keys() == {*BAD, *(f"id-{i}" for i in range(12) if i not in kept)}
    for row, (name, (_, reason)) in enumerate(BAD.items(), start=12):
        assert rejected[name]["where"] == f"train.csv row {row}"
        assert reason in rejected[name]["reason"]


def test_too_many_rejected(tmp_path, cache_dir):
    reader = write_table(tmp_path / "train.csv", num=12, bad=("partial", "overlap", "empty"))
    assert len(load_split(reader, ReadOptions(), cache_dir, max_rejected=0.2)) == 12  # 3 of 15
    with pytest.raises(DataError) as error:
        load_split(reader, ReadOptions(), cache_dir, max_rejected=0.19)
    message = str(error.value)
    (folder,) = caches(cache_dir)
    for part in (
        f"{reader.path}: 3 of 15 crystals rejected",
        str(folder / "rejected.csv"),
        "train.csv row 12 (partial): atom 1 has occupancy 0.5",
        "train.csv row 13 (overlap): atoms 0 and 1 are 0.200 Å apart",
        "train.csv row 14 (empty): empty CIF",
        "data.max_rejected (now 0.19)",
    ):
        assert part in message


def test_the_error_lists_only_the_first_few(tmp_path, cache_dir):
    reader = write_table(tmp_path / "train.csv", num=2, bad=("empty",) * 9)
    with pytest.raises(DataError, match=r"9 of 11 .* rejected \(incomplete file: 9\)") as error:
        load_split(reader, ReadOptions(), cache_dir)
    assert str(error.value).count("empty CIF") == 5


def test_the_error_names_the_folder_and_the_file(tmp_path, cache_dir):
    folder = tmp_path / "cifs"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "bad.cif").write_text("")
    (folder / "good.cif").write_text(GOOD.format(name="x"))
    reader = StructureReader(folder)
    with pytest.raises(DataError, match="1 of 2 crystals rejected") as error:
        load_split(reader, ReadOptions(), cache_dir)
    assert str(error.value).startswith(f"{folder}: ")
    assert "deep/bad.cif (deep/bad): empty CIF" in str(error.value)
    assert "select other files with data.files" in str(error.value)


def test_no_crystals_left(tmp_path, cache_dir):
    reader = write_table(tmp_path / "train.csv", num=0, bad=("empty", "prose"))
    with pytest.raises(DataError, match="2 of 2 crystals rejected"):
        load_split(reader, ReadOptions(), cache_dir, max_rejected=1.0)
    (tmp_path / "val.csv").write_text("material_id,cif\n")
    with pytest.raises(DataError, match=r"val\.csv contains no crystals"):
        load_split(CsvReader(tmp_path / "val.csv"), ReadOptions(), cache_dir, max_rejected=1.0)


def test_no_crystals_left_is_no_error_without_a_limit(tmp_path, cache_dir, caplog):
    reader = write_table(tmp_path / "train.csv", num=0, bad=("empty", "prose"))
    for _ in range(2):  # the second time from the cache
        dataset = load_split(reader, ReadOptions(), cache_dir, max_rejected=None)
        assert len(dataset) == 0
        assert [row["where"] for row in dataset.rejected()] == [
            "train.csv row 0",
            "train.csv row 1",
        ]
        assert dataset.rejected()[0] == {
            "where": "train.csv row 0", "material_id": "empty", "reason": "empty CIF"
        }  # fmt: skip
    assert "rejected" not in caplog.text
    assert read_crystals(reader, ReadOptions())[0].rejected() == []  # no cache, no list


def test_an_unreadable_table_leaves_no_cache(tmp_path, cache_dir):
    data = write_table(tmp_path / "train.csv").path.read_bytes()
    path = tmp_path / "train.csv.gz"
    path.write_bytes(gzip.compress(data)[:-100])
    with pytest.raises(DataError, match=r"train\.csv\.gz is not a readable CSV file"):
        load_split(CsvReader(path), ReadOptions(), cache_dir)
    assert caches(cache_dir) == []


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_cache_dir_that_cannot_be_written(reader, tmp_path, below):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"Cannot write the cache .* point data\.cache_dir"):
        load_split(reader, ReadOptions(), tmp_path / "file" / below)


@pytest.mark.skipif(os.geteuid() == 0, reason="root ignores permissions")
def test_a_read_only_cache_dir(reader, tmp_path):
    folder = tmp_path / "read_only"
    folder.mkdir(mode=0o500)
    with pytest.raises(DataError, match=r"Cannot write the cache .* point data\.cache_dir"):
        load_split(reader, ReadOptions(), folder)


# --- many processes --------------------------------------------------------------------------

# One clean process imports torch; the workers are forks of it.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["src.data.dataset"])


def load_at_once(reader, cache_dir, log_file, barrier, results) -> None:
    logging.basicConfig(filename=log_file, level=logging.INFO)
    barrier.wait()
    dataset = load_split(reader, ReadOptions(), cache_dir)
    results.put((list(dataset.ids), dataset.frac_coords.double().sum().item()))


@pytest.mark.slow
def test_processes_that_start_at_once_make_one_cache(tmp_path, cache_dir):
    reader = write_table(tmp_path / "train.csv", num=200)
    barrier, results = PROCESSES.Barrier(4), PROCESSES.Queue()
    logs = [tmp_path / f"{i}.log" for i in range(4)]
    workers = [
        PROCESSES.Process(target=load_at_once, args=(reader, cache_dir, log, barrier, results))
        for log in logs
    ]
    for worker in workers:
        worker.start()
    answers = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    assert answers == [answers[0]] * 4
    assert len(answers[0][0]) == 200
    text = "".join(log.read_text() for log in logs)
    assert text.count("Read 200 crystals of") == 1
    assert "damaged" not in text
    assert len(caches(cache_dir)) == 1


def stop_in_the_middle(reader, cache_dir, stage, reached) -> None:
    def stop(*args) -> None:
        if stage == "writing":  # half of the tensors are on disk
            args[0]._path.write_bytes(b"\0" * 100)
        reached.set()
        time.sleep(600)

    target: tuple[object, str] = {
        "reading": (parsing, "check_crystal"),
        "writing": (TensorWriter, "_put_together"),
        "renaming": (os, "replace"),
    }[stage]
    setattr(*target, stop)
    load_split(reader, ReadOptions(), cache_dir)


@pytest.mark.parametrize("stage", ["reading", "writing", "renaming"])
def test_a_killed_process_leaves_no_cache(reader, cache_dir, stage, caplog):
    reached = PROCESSES.Event()
    worker = PROCESSES.Process(target=stop_in_the_middle, args=(reader, cache_dir, stage, reached))
    worker.start()
    assert reached.wait(timeout=120)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(timeout=60)
    assert worker.exitcode == -signal.SIGKILL
    assert caches(cache_dir) == []
    assert len(list(cache_dir.glob("*.partial"))) == 1

    expected, _ = read_crystals(reader, ReadOptions())
    with caplog.at_level(logging.INFO):
        assert_same(load_split(reader, ReadOptions(), cache_dir), expected)
    assert caplog.text.count("Read 12 crystals of") == 1
    assert len(caches(cache_dir)) == 1
    assert not list(cache_dir.glob("*.partial"))
