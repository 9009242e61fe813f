"""Damaged files: the script that makes and tries them, and what Hypothesis thinks of."""

import contextlib
import gzip
import importlib.util
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from src.data import cif
from src.data.cif import Crystal, CrystalError, check_crystal, read_cif
from src.data.readers import CsvReader, DataError

pytestmark = pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning")

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data" / "prototypes"


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz", ROOT / "scripts" / "fuzz.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module  # where its own processes look for it
    spec.loader.exec_module(module)
    yield module
    del sys.modules["fuzz"]


@pytest.fixture(scope="module")
def cifs(fuzz):
    return fuzz.Fuzzer("cif", DATA)


def faults(fuzz, outcomes) -> dict:
    return {i: outcome for i, outcome in enumerate(outcomes) if outcome.verdict in fuzz.FAULTS}


@pytest.mark.parametrize(("target", "num"), [("csv", 150), ("checkpoint", 40)])
def test_a_few_hundred_damaged_files(fuzz, target, num):
    fuzzer = fuzz.Fuzzer(target, DATA)
    outcomes = [fuzzer(i) for i in range(num)]
    assert faults(fuzz, outcomes) == {}
    verdicts = [outcome.verdict for outcome in outcomes]
    assert verdicts.count("accepted") > 0.1 * num
    assert verdicts.count("rejected") > 0.1 * num


def test_a_few_hundred_damaged_cifs(fuzz, cifs):
    outcomes = [cifs(i) for i in range(200)]
    assert faults(fuzz, outcomes) == {}
    verdicts = [outcome.verdict for outcome in outcomes]
    assert verdicts.count("accepted") > 40
    assert verdicts.count("rejected") > 40


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cif", "csv", "checkpoint"])
def test_thousands_of_damaged_files(fuzz, target):
    assert faults(fuzz, fuzz.run(target, DATA, 3000, seed=1)) == {}


# The script finds what is wrong


def test_an_input_is_a_function_of_its_number(fuzz, cifs):
    again = fuzz.Fuzzer("cif", DATA)
    assert [again.make(i) for i in range(5)] == [cifs.make(i) for i in range(5)]
    assert fuzz.Fuzzer("cif", DATA, seed=1).make(0) != cifs.make(0)


def moved(crystal: Crystal) -> Crystal:
    shifted = (crystal.frac_coords + np.array([0.1, 0, 0])) % 1
    return Crystal(crystal.lattice, crystal.atom_types, shifted)


def one_less(crystal: Crystal) -> Crystal:
    return Crystal(crystal.lattice, crystal.atom_types[1:], crystal.frac_coords[1:])


def heavier(crystal: Crystal) -> Crystal:
    return Crystal(crystal.lattice, crystal.atom_types + 1, crystal.frac_coords)


def longer(crystal: Crystal) -> Crystal:
    return Crystal(1.01 * crystal.lattice, crystal.atom_types, crystal.frac_coords)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (moved, "other coordinates"),
        (one_less, "other number of atoms"),
        (heavier, "other elements"),
        (longer, "other lattice"),
    ],
)
def test_a_crystal_that_is_misread(fuzz, cifs, monkeypatch, change, reason):
    text = cifs.originals[0]
    assert fuzz.try_cif(text) == ("accepted", "")
    monkeypatch.setattr(cif, "read_cif", lambda text, niggli: change(read_cif(text, niggli)))
    assert fuzz.try_cif(text) == ("disagreed", reason)


def hang(text, niggli):
    time.sleep(60)


def fail(text, niggli):
    raise ZeroDivisionError("at 123")


def test_a_reader_that_hangs_or_fails(fuzz, cifs, monkeypatch):
    monkeypatch.setattr(fuzz, "LIMIT", 0.05)
    monkeypatch.setattr(cif, "read_cif", hang)
    assert cifs(0).verdict == "hang"
    monkeypatch.setattr(cif, "read_cif", fail)
    assert cifs(0) == ("error", "ZeroDivisionError: at N")


@pytest.mark.slow
def test_a_reader_that_kills_its_process(fuzz, monkeypatch):
    """Here the processes are forks, so that they have what is patched."""
    dies = fuzz.Target(lambda folder: [""], lambda rng, all: str(rng.random()), die_at_times)
    monkeypatch.setitem(fuzz.TARGETS, "cif", dies)
    verdicts = [outcome.verdict for outcome in fuzz.run("cif", DATA, 12)]
    assert "crash" in verdicts
    assert "accepted" in verdicts


def die_at_times(text: str):
    if float(text) < 0.4:
        os._exit(3)
    return sys.modules["fuzz"].Outcome("accepted")


def test_the_command(fuzz, capsysbinary):
    assert fuzz.main(["cif", "--data-dir", str(DATA), "--show", "3"]) == 0
    shown = capsysbinary.readouterr().out
    assert shown.startswith(fuzz.Fuzzer("cif", DATA).make(3).encode())


def test_the_table(fuzz):
    outcomes = [fuzz.Outcome("accepted")] * 3 + [fuzz.Outcome("rejected", "no atoms")] * 2
    table = fuzz.summarize(outcomes)
    assert [list(column.cells) for column in table.columns] == [
        ["accepted", "rejected", ""],
        ["", "", "no atoms"],
        ["3", "2", "2"],
    ]


# What Hypothesis thinks of

HEADER = "data_x\n_cell_length_a 4\n_cell_length_b {b}\n_cell_length_c 5\n"
ANGLES = "_cell_angle_alpha {alpha}\n_cell_angle_beta 90\n_cell_angle_gamma 90\n"
SITES = (
    "loop_\n_atom_site_type_symbol\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n"
)
NUMBERS = st.one_of(
    st.floats().map(repr), st.integers().map(str), st.text("0123456789.+-e()/?", max_size=6)
)


def read_or_refuse(text: str) -> None:
    with contextlib.suppress(CrystalError):
        check_crystal(read_cif(text))


@settings(max_examples=200, deadline=1000, database=None)
@given(st.text(max_size=60))
@example("data_\x00")
@example("data_x\nloop_")
@example("\ud800")
def test_any_text(text):
    read_or_refuse(text)
    read_or_refuse(HEADER.format(b=4) + text)


@settings(max_examples=150, deadline=1000, database=None)
@given(NUMBERS, NUMBERS, st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=3), st.text())
def test_any_number(b, alpha, coords, symbol):
    rows = "".join(f"'{symbol.replace(chr(10), '')}'? {x} 0 {z}\n" for x, z in coords)
    rows += "".join(f"Na {x} 0 {z}\n" for x, z in coords)
    read_or_refuse(HEADER.format(b=b) + ANGLES.format(alpha=alpha) + SITES + rows)
    salt = "".join(f"Na {x} 0.5 {z}\n" for x, z in coords)
    read_or_refuse(HEADER.format(b=b) + ANGLES.format(alpha=alpha) + SITES + salt)


@settings(max_examples=150, deadline=1000, database=None)
@given(st.text("xyz+-*/.,0123456789 é", max_size=16), st.text(max_size=8))
@example("x+./2,y,z", "")
@example("x+é,y,z", "é")
@example("", 5000 * "9")
@example("", 30 * "9")
def test_any_symmetry(triplet, name):
    cell = HEADER.format(b=4) + ANGLES.format(alpha=90) + SITES + "Na 0 0 0\n"
    read_or_refuse(f"{cell}loop_\n_symmetry_equiv_pos_as_xyz\n'x,y,z'\n'{triplet}'\n")
    for tag in ("_space_group_name_Hall", "_space_group_name_H-M_alt", "_space_group_IT_number"):
        read_or_refuse(f"{cell}{tag} '{name}'\n")


# What was found

SALT = HEADER.format(b=4) + ANGLES.format(alpha=90) + SITES + "Na 0 0 0.1\n"


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("loop_\n_symmetry_equiv_pos_as_xyz\n'x,y,z'\n'-x,y+./2,-z'\n", "cannot be read"),
        ("loop_\n_symmetry_equiv_pos_as_xyz\n'x,y,z'\n'-x,y+é,-z'\n", "cannot be read"),
        ("_symmetry_space_group_name_Hall 'é'\n", "unknown space group"),
        (f"_space_group_IT_number {5000 * '9'}\n", "unknown space group"),
        ("_space_group_name_H-M_alt 'P -1'\n_space_group_IT_number 5\n", "is number 2, not 5"),
        ("_x \ud800", "not valid CIF"),
    ],
)
def test_cifs_that_were_misread_or_raised_other_errors(lines, reason):
    assert read_cif(SALT).num_atoms == 1
    with pytest.raises(CrystalError, match=reason):
        read_cif(SALT + lines)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("material_id,cif\na,data_x\0data_y\n", "NUL byte"),  # pandas gives data_x
        ("material_id,gap,cif\na,1,2,x\nb,1,2,y\n", "has a row with more values"),  # shifts
        ("material_id,cif,gap\na,x,1\nb,y,1,2\n", "Expected 3 fields"),  # it drops the last
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_tables_that_pandas_misreads(table, reason, suffix, tmp_path):
    path = tmp_path / f"train{suffix}"
    path.write_bytes(gzip.compress(table.encode()) if suffix == ".csv.gz" else table.encode())
    with pytest.raises(DataError, match=reason):
        list(CsvReader(path, ["gap"]))


def test_an_id_may_be_a_word_that_stands_for_nothing_elsewhere(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("material_id,cif,gap\nNA,x,NA\nnull,y,1.5\n")
    records = list(CsvReader(path, ["gap"]))
    assert [record.id for record in records] == ["NA", "null"]
    assert np.isnan(records[0].properties[0])
    assert records[1].properties == (1.5,)
