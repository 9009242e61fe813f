import gzip
import json
import logging
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from src.data.cif import Crystal, CrystalError, write_cif
from src.data.readers import (
    CsvReader,
    DataError,
    PropertyParser,
    Record,
    columns_of,
    crystal_of,
    iter_rows,
    read_properties,
)

TABLE = {
    "material_id": ["mp-1", "007", "mp-3"],
    "cif": ["data_a\n_b 'one, two'\n", 'data_b\n_c "x"\n', "data_c\n"],
    "band_gap": [0.5, None, 2.0],
    "label": ["1.5", "many", ""],
}


def write_table(path: Path, columns=tuple(TABLE)) -> Path:
    pd.DataFrame({name: TABLE[name] for name in columns}).to_csv(path, index=False)
    return path


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
    assert math.isnan(labels[1])  # text instead of a number
    assert math.isnan(labels[2])


def test_properties_are_in_the_requested_order(tmp_path):
    path = write_table(tmp_path / "train.csv")
    first = next(iter(CsvReader(path, ("label", "band_gap"))))
    assert first.properties == (1.5, 0.5)
    assert next(iter(CsvReader(path))).properties == ()


def test_without_an_id_column_row_numbers_are_ids(tmp_path):
    path = write_table(tmp_path / "train.csv", ("band_gap", "cif"))
    assert [r.id for r in CsvReader(path)] == ["0", "1", "2"]


def test_rows_are_counted_across_chunks(tmp_path):
    path = tmp_path / "train.csv"
    pd.DataFrame({"cif": [f"data_{i}" for i in range(25_000)]}).to_csv(path, index=False)
    records = list(CsvReader(path))
    assert [r.id for r in records] == [str(i) for i in range(25_000)]
    assert records[24_321].cif == "data_24321"
    assert records[24_321].where == "train.csv row 24321"


def test_a_row_with_an_empty_cell_is_kept(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("material_id,cif\na,data_a\nb,\n,data_c\n")
    assert [(r.id, r.cif) for r in CsvReader(path)] == [("a", "data_a"), ("b", ""), ("", "data_c")]


def test_a_property_without_a_column_is_nan_and_logged(tmp_path, caplog):
    path = write_table(tmp_path / "train.csv")
    with caplog.at_level(logging.WARNING):
        records = list(CsvReader(path, ("e_form", "band_gap")))
    assert all(math.isnan(r.properties[0]) for r in records)
    assert records[0].properties[1] == 0.5
    assert f"{path} has no column 'e_form'" in caplog.text


def test_no_cif_column(tmp_path):
    path = write_table(tmp_path / "train.csv", ("material_id", "band_gap"))
    with pytest.raises(DataError, match=r"has no column 'cif'.*: rename the one") as error:
        list(CsvReader(path))
    assert str(path) in str(error.value)
    assert "['material_id', 'band_gap']" in str(error.value)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_two_columns_with_the_same_name(tmp_path, suffix):
    path = tmp_path / f"train{suffix}"
    names, values = ["id", "cif", "gap", "gap", "x", "x"], ["a", "data_a", "1", "2", "3", "4"]
    if suffix == ".parquet":
        parquet.write_table(pa.table([pa.array([value]) for value in values], names), path)
    else:
        pd.DataFrame([values], columns=names).to_csv(path, index=False)
    assert [r.cif for r in CsvReader(path)] == ["data_a"]  # not an error if not requested
    for read in (lambda: list(CsvReader(path, ("gap",))), lambda: read_properties(path, ["gap"])):
        with pytest.raises(DataError, match="has 2 columns 'gap': keep one") as error:
            read()
        assert str(path) in str(error.value)


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
def test_the_error_names_a_file_that_is_not_a_table(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(NOT_TABLES[name])
    with pytest.raises(DataError) as error:
        list(CsvReader(path))
    assert str(path) in str(error.value)


def test_the_error_names_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        list(CsvReader(tmp_path / "nowhere.csv"))


# Parquet


def write_parquet(path: Path, num: int = 25, **columns) -> Path:
    frame = pd.DataFrame(
        {
            "material_id": [f"mp-{i}" for i in range(num)],
            "cif": [None if i == 3 else f"data_{i}" for i in range(num)],
            "gap": [None if i == 4 else i / 2 for i in range(num)],
            "embedding": [[0.0] * 10] * num,
            **columns,
        }
    )
    frame.to_parquet(path, row_group_size=7)
    return path


def test_rows_of_parquet(tmp_path):
    records = list(CsvReader(write_parquet(tmp_path / "train.parquet"), ("gap",)))
    assert [r.id for r in records] == [f"mp-{i}" for i in range(25)]
    assert [r.cif for r in records] == ["" if i == 3 else f"data_{i}" for i in range(25)]
    gaps = [r.properties[0] for r in records]
    assert math.isnan(gaps.pop(4))
    assert gaps == [i / 2 for i in range(25) if i != 4]
    assert records[17].where == "train.parquet row 17"


@pytest.mark.parametrize("dtype", ["Int64", "string"])
def test_a_missing_id_in_parquet_is_empty(tmp_path, dtype):
    table = pd.DataFrame({"material_id": pd.array([7, None], dtype=dtype), "cif": "x"})
    table.to_parquet(tmp_path / "x.parquet")
    assert [row.id for row in iter_rows(tmp_path / "x.parquet")] == ["7", ""]


@pytest.mark.parametrize("index", [True, False])
def test_ids_of_parquet_that_were_an_index_or_bytes(tmp_path, index):
    table = pd.DataFrame({"material_id": [b"a", b"1e5"], "cif": ["x", "y"]})
    table = table.set_index("material_id") if index else table
    table.to_parquet(tmp_path / "x.parquet")
    assert [row.id for row in iter_rows(tmp_path / "x.parquet")] == ["a", "1e5"]


def test_parquet_is_read_in_chunks_and_only_the_requested_columns(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", 30_000)
    assert columns_of(path) == ["material_id", "cif", "gap", "embedding"]
    rows = iter_rows(path, ["gap"])
    assert next(rows).values == {"gap": 0.0}
    assert sum(1 for _ in rows) == 29_999


def test_the_error_names_a_damaged_parquet_file(tmp_path):
    path = write_parquet(tmp_path / "train.parquet")
    content = path.read_bytes()
    for bad in (b"", b"PAR1", content[:-100], b"a,b\n" * 99):
        path.write_bytes(bad)
        with pytest.raises(DataError, match=r"train\.parquet is not a readable Parquet file"):
            list(CsvReader(path))
    pd.DataFrame({"structure": ["x"]}).to_parquet(path)
    with pytest.raises(DataError, match=r"no column 'cif'; its columns are \['structure'\]"):
        list(CsvReader(path))


def test_the_column_id_is_used_if_there_is_no_material_id(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("id,cif\n007,data_a\n")
    assert [r.id for r in CsvReader(path)] == ["007"]
    path.write_text("id,cif,material_id\n007,data_a,mp-1\n")
    assert [r.id for r in CsvReader(path)] == ["mp-1"]


# PropertyParser


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((1, 1.0), (2.5, 2.5), ("1e-3", 1e-3), (" 7 ", 7.0), (True, 1.0), (np.float32(0.5), 0.5)),
        *((None, None), ("", None), ("NaN", None), ("n/a", None), (math.nan, None)),
    ],
)
def test_values_are_parsed(caplog, value, expected):
    parser = PropertyParser(Path("f.csv"), ["x"])
    (found,) = parser.parse({"x": value}, "row 0")
    assert math.isnan(found) if expected is None else found == expected
    parser.warn_of_invalid()
    assert caplog.text == ""  # a missing value is not an error


def test_memory_does_not_grow_with_the_number_of_invalid_values():
    parser = PropertyParser(Path("f.csv"), ["x"])
    tracemalloc.start()
    for i in range(1000):
        parser.parse({"x": "many"}, f"row {i}")
    num_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_bytes < 10_000


@pytest.mark.parametrize("value", ["many", "1,5", [1.0], np.zeros(1), {}, math.inf, 1e39, 10**400])
def test_values_that_are_not_numbers_are_counted_and_logged(caplog, value):
    parser = PropertyParser(Path("f.csv"), ["gap", "x"])
    found = [parser.parse({"gap": i, "x": value if i else 1}, f"row {i}") for i in range(4)]
    assert [gap for gap, _ in found] == [0, 1, 2, 3]
    assert [math.isnan(x) for _, x in found] == [False, True, True, True]
    parser.warn_of_invalid()
    assert (
        "f.csv: 3 values of 'x' are not numbers and were replaced by NaN; the first is"
        in caplog.text
    )
    assert "in row 1" in caplog.text


def test_the_reader_of_a_table_logs_values_that_are_not_numbers(tmp_path, caplog):
    list(CsvReader(write_table(tmp_path / "train.csv"), ("label",)))
    assert "1 values of 'label' are not numbers" in caplog.text
    assert "'many' in train.csv row 1" in caplog.text


def test_an_unknown_property_is_an_error_that_lists_the_available_ones():
    parser = PropertyParser(Path("f.db"), ["gap", "energy"])
    parser.available.update({"energy", "band_gap"})
    with pytest.raises(DataError, match=r"no crystal has \['gap'\]; .* are: band_gap, energy$"):
        parser.check_names()


# A table of properties


def test_properties_by_id(tmp_path):
    path = tmp_path / "id_prop.csv"
    path.write_text("id,gap,name\n007,1.5,x\na/b,,y\n")
    found = read_properties(path, ["gap"])
    assert found["007"] == (1.5,)
    assert math.isnan(found["a/b"][0])
    with pytest.raises(DataError, match=r"no crystal has \['energy'\]"):
        read_properties(path, ["energy"])
    path.write_text("id,gap\nx,1\nx,2\n")
    with pytest.raises(DataError, match="has 'x' twice"):
        read_properties(path, ["gap"])
    path.write_text("gap\n1\n")
    with pytest.raises(DataError, match="no column material_id or id"):
        read_properties(path, ["gap"])


# Records


def test_a_record_gives_a_crystal_or_the_reason_why_it_cannot():
    crystal = Crystal(np.eye(3) * 4, np.array([11]), np.zeros((1, 3)))
    assert crystal_of(Record("w", "x", crystal=crystal)) is crystal
    text = write_cif(crystal, "x")
    assert crystal_of(Record("w", "x", text)).atom_types.tolist() == [11]
    with pytest.raises(CrystalError, match=r"^damaged$"):
        crystal_of(Record("w", "x", reason="damaged"))
    with pytest.raises(CrystalError, match="empty CIF"):
        crystal_of(Record("w", "x"))


# Values and columns of the field's tables


def test_booleans_with_gaps(tmp_path, caplog):
    table = pd.DataFrame({"cif": ["a"] * 4, "x": [True, None, False, True]})
    table.to_csv(tmp_path / "a.csv", index=False)
    table.astype({"x": "boolean"}).to_parquet(tmp_path / "b.parquet")
    table.assign(x=pd.array([1, None, 0, 1], dtype="Int64")).to_parquet(tmp_path / "c.parquet")
    for name in ("a.csv", "b.parquet", "c.parquet"):
        values = [r.properties[0] for r in CsvReader(tmp_path / name, ("x",))]
        np.testing.assert_equal(values, [1, math.nan, 0, 1])
    assert caplog.text == ""


def test_cifs_as_bytes(tmp_path):
    table = pd.DataFrame({"cif": ["data_é".encode(), None]})
    table.to_parquet(tmp_path / "a.parquet")
    table.to_csv(tmp_path / "b.csv", index=False)
    for name in ("a.parquet", "b.csv"):
        assert [r.cif for r in CsvReader(tmp_path / name)] == ["data_é", ""]


def test_columns_of_optimade_and_dictionaries(tmp_path):
    columns = {
        "immutable_id": ["agm1", "agm2"],
        "lattice_vectors": [[[4.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0]]] * 2,
        "species_at_sites": [["Na", "Cl"], ["Na", "Wat"]],
        "cartesian_site_positions": [[[0.0, 0, 0], [2.0, 2.0, 2.0]]] * 2,
        "energy": [-1.0, -2.0],
    }
    pd.DataFrame(columns).to_parquet(tmp_path / "a.parquet")
    as_text = pd.DataFrame(columns).map(lambda x: json.dumps(x) if isinstance(x, list) else x)
    as_text.to_csv(tmp_path / "b.csv.xz", index=False)
    jarvis = {
        "lattice_mat": columns["lattice_vectors"][0],
        "coords": [[0, 0, 0]],
        "elements": ["Na"],
    }
    nested = pd.DataFrame(
        {"atoms": [json.dumps(jarvis), "{}"], "energy": [-1, -2], "id": ["u", "v"]}
    )
    nested.to_csv(tmp_path / "c.csv", index=False)
    for name, id_ in (("a.parquet", "agm1"), ("b.csv.xz", "agm1"), ("c.csv", "u")):
        first, second = CsvReader(tmp_path / name, ("energy",))
        assert (first.id, first.properties) == (id_, (-1.0,))
        assert crystal_of(first).atom_types[0] == 11
        with pytest.raises(CrystalError):
            crystal_of(second)


def test_a_table_without_a_header(tmp_path):
    path = tmp_path / "id_prop.csv"
    path.write_text("mp-1,0.5\nmp-2,1.5\n")
    with pytest.raises(DataError, match=r"id_prop\.csv has no header.*such as id,gap"):
        read_properties(path, ["gap"])
    with pytest.raises(DataError, match=r"id_prop\.csv has no header.*data\.property_file"):
        list(CsvReader(path))
