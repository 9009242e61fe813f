import gzip
import logging
import math
from pathlib import Path

import pandas as pd
import pytest

from src.data.readers import SPLITS, CifReader, CsvReader, DataError, find_splits

TABLE = {
    "material_id": ["mp-1", "007", "mp-3"],
    "cif": ["data_a\n_b 'one, two'\n", 'data_b\n_c "x"\n', "data_c\n"],
    "band_gap": [0.5, None, 2.0],
    "label": ["1.5", "many", ""],
}


def write_table(path: Path, columns=tuple(TABLE)) -> Path:
    pd.DataFrame({name: TABLE[name] for name in columns}).to_csv(path, index=False)
    return path


def write_cifs(folder: Path, num: int = 20) -> list[str]:
    """Files at three depths; their ids."""
    ids = [f"{('', 'a/', 'a/b/')[i % 3]}crystal.{i}" for i in range(num)]
    for name in ids:
        path = folder / f"{name}.cif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"data_{name}")
    return ids


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_rows_of_a_table(tmp_path, suffix):
    path = write_table(tmp_path / f"train{suffix}")
    records = list(CsvReader(path, ("band_gap", "label")))
    assert [r.id for r in records] == TABLE["material_id"]  # 007 keeps its zeros
    assert [r.cif for r in records] == TABLE["cif"]
    assert [r.where for r in records] == [f"train{suffix} row {i}" for i in range(3)]
    gaps, labels = zip(*(r.properties for r in records), strict=True)
    assert gaps[0] == 0.5
    assert gaps[2] == 2.0
    assert math.isnan(gaps[1])
    assert labels[0] == 1.5
    assert math.isnan(labels[1])  # text where a number should be
    assert math.isnan(labels[2])


def test_properties_come_in_the_order_asked_for(tmp_path):
    path = write_table(tmp_path / "train.csv")
    first = next(iter(CsvReader(path, ("label", "band_gap"))))
    assert first.properties == (1.5, 0.5)
    assert next(iter(CsvReader(path))).properties == ()


def test_without_ids_rows_are_counted(tmp_path):
    path = write_table(tmp_path / "train.csv", ("band_gap", "cif"))
    assert [r.id for r in CsvReader(path)] == ["0", "1", "2"]


def test_rows_are_counted_across_chunks(tmp_path):
    path = tmp_path / "train.csv"
    pd.DataFrame({"cif": [f"data_{i}" for i in range(25_000)]}).to_csv(path, index=False)
    records = list(CsvReader(path))
    assert [r.id for r in records] == [str(i) for i in range(25_000)]
    assert records[24_321].cif == "data_24321"
    assert records[24_321].where == "train.csv row 24321"


def test_an_empty_cell_is_a_row_all_the_same(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("material_id,cif\na,data_a\nb,\n,data_c\n")
    assert [(r.id, r.cif) for r in CsvReader(path)] == [("a", "data_a"), ("b", ""), ("", "data_c")]


def test_a_property_the_file_lacks_is_nan_and_logged(tmp_path, caplog):
    path = write_table(tmp_path / "train.csv")
    with caplog.at_level(logging.WARNING):
        records = list(CsvReader(path, ("e_form", "band_gap")))
    assert all(math.isnan(r.properties[0]) for r in records)
    assert records[0].properties[1] == 0.5
    assert f"{path} has no column 'e_form'" in caplog.text


def test_no_cif_column(tmp_path):
    path = write_table(tmp_path / "train.csv", ("material_id", "band_gap"))
    with pytest.raises(DataError, match="has no column 'cif'") as error:
        list(CsvReader(path))
    assert str(path) in str(error.value)
    assert "['material_id', 'band_gap']" in str(error.value)


def corrupt(data: bytes) -> bytes:
    return data[:30] + bytes([data[30] ^ 0xFF]) + data[31:]


PACKED = gzip.compress(
    b"material_id,cif\n" + b"".join(b"%d,data_%d\n" % (i, i) for i in range(999))
)
NOT_TABLES = {
    "empty.csv": b"",
    "image.csv": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9,
    "latin_1.csv": "material_id,cif\nCrème,b\n".encode("latin-1"),
    "utf_16.csv": "material_id,cif\na,b\n".encode("utf-16"),
    "zeros.csv": bytes(500),
    "open_quote.csv": b'material_id,cif\na,"data_\n',
    "plain.csv.gz": b"material_id,cif\na,data_a\n",
    "empty.csv.gz": b"",
    "truncated.csv.gz": PACKED[: len(PACKED) // 2],
    "checksum.csv.gz": PACKED[:-6] + b"\0\0" + PACKED[-4:],
    "flipped.csv.gz": corrupt(PACKED),
}


@pytest.mark.parametrize("name", NOT_TABLES)
def test_what_is_no_table_is_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(NOT_TABLES[name])
    with pytest.raises(DataError) as error:
        list(CsvReader(path))
    assert str(path) in str(error.value)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        list(CsvReader(tmp_path / "nowhere.csv"))


def test_real_tables(shared_data):
    splits = find_splits(shared_data / "perov_5", ("heat_all",))
    assert list(splits) == list(SPLITS)
    record = next(iter(splits["test"]))
    assert "_cell_length_a" in record.cif
    assert len(record.properties) == 1


def test_a_folder_of_tables(tmp_path):
    write_table(tmp_path / "train.csv")
    write_table(tmp_path / "test.csv.gz")
    write_cifs(tmp_path, 3)  # tables win over .cif files beside them
    splits = find_splits(tmp_path, ["band_gap"])
    assert splits == {
        "train": CsvReader(tmp_path / "train.csv", ("band_gap",)),
        "test": CsvReader(tmp_path / "test.csv.gz", ("band_gap",)),
    }


def test_a_folder_of_cif_files_at_any_depth(tmp_path):
    ids = write_cifs(tmp_path)
    (tmp_path / "notes.txt").write_text("not a crystal")
    (tmp_path / "folder.cif").mkdir()
    splits = find_splits(tmp_path, split_ratio=(0.5, 0.3, 0.2))
    assert {name: len(reader.files) for name, reader in splits.items()} == {
        "train": 10,
        "val": 6,
        "test": 4,
    }
    records = [record for reader in splits.values() for record in reader]
    assert sorted(r.id for r in records) == sorted(ids)  # each once
    assert all(r.cif == f"data_{r.id}" for r in records)
    assert all(r.where == f"{r.id}.cif" for r in records)


def test_the_seed_decides_the_split(tmp_path):
    write_cifs(tmp_path)
    first = find_splits(tmp_path, split_seed=1)
    assert find_splits(tmp_path, split_seed=1) == first
    assert set(first["train"].files) != set(find_splits(tmp_path, split_seed=2)["train"].files)
    # shares count, not their sum
    assert find_splits(tmp_path, split_ratio=(8, 1, 1), split_seed=1) == first


def test_a_split_without_files_is_left_out(tmp_path):
    write_cifs(tmp_path, 3)
    assert list(find_splits(tmp_path, split_ratio=(0, 0, 1))) == ["test"]
    assert list(find_splits(tmp_path, split_ratio=(1, 0, 0))) == ["train"]


@pytest.mark.parametrize("ratio", [(0.8, 0.2), (0.5, 0.6, -0.1), (0, 0, 0)])
def test_impossible_ratios(tmp_path, ratio):
    write_cifs(tmp_path, 3)
    with pytest.raises(DataError, match="split_ratio"):
        find_splits(tmp_path, split_ratio=ratio)


def test_cif_files_in_other_encodings_are_read(tmp_path):
    (tmp_path / "bom.cif").write_bytes(b"\xef\xbb\xbfdata_a")
    (tmp_path / "latin.cif").write_bytes("data_a\n# Crème".encode("latin-1"))
    files = (tmp_path / "bom.cif", tmp_path / "latin.cif")
    texts = [record.cif for record in CifReader(tmp_path, files)]
    assert texts[0] == "data_a"
    assert texts[1].startswith("data_a\n# Cr")


def test_folders_without_crystals(tmp_path):
    with pytest.raises(DataError, match=r"There is no folder .*nowhere.*Point data\.data_dir"):
        find_splits(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds neither train\.csv .* nor any \.cif"):
        find_splits(tmp_path)
    write_cifs(tmp_path, 3)
    with pytest.raises(DataError, match=r"carry no \['band_gap'\]"):
        find_splits(tmp_path, ["band_gap"])
