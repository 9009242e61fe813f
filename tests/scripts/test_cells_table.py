"""The table of cells: its measures on crystals with known answers, and the command."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from src.data.cif import Crystal

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("cells", ROOT / "scripts" / "cells.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def crystal() -> Crystal:
    lattice = np.array([[4.0, 0, 0], [0.3, 5, 0], [0.2, 0.5, 6]])
    coords = np.array([[0, 0, 0], [0.5, 0.48, 0.3], [0.1, 0.7, 0.6]])
    return Crystal(lattice, np.array([11, 17, 17]), coords)


def test_crystals_are_written_in_another_way(script, crystal):
    rng = np.random.default_rng(0)
    rewritten, doubled = script.rewrite(crystal, rng), script.double(crystal, rng)
    volume = np.linalg.det(crystal.lattice)
    assert np.linalg.det(rewritten.lattice) == pytest.approx(volume)
    assert np.linalg.det(doubled.lattice) == pytest.approx(2 * volume)
    assert (rewritten.num_atoms, doubled.num_atoms) == (3, 6)
    for cell in ("niggli", "primitive"):
        chosen = script.choose_cell(crystal, cell)
        assert script.same_cell(chosen, script.choose_cell(rewritten, cell))
        assert script.same_positions(chosen, script.choose_cell(rewritten, cell))
        assert script.same_cell(chosen, script.choose_cell(doubled, cell)) is (cell == "primitive")
    assert not script.same_cell(crystal, rewritten)


def test_positions_are_compared_up_to_the_origin(script, crystal):
    moved = Crystal(crystal.lattice, crystal.atom_types, (crystal.frac_coords + 0.35) % 1)
    assert script.same_positions(crystal, moved)
    order = [2, 0, 1]
    assert script.same_positions(
        crystal, Crystal(crystal.lattice, moved.atom_types[order], moved.frac_coords[order])
    )
    moved.frac_coords[1, 0] += 0.01  # 0.04 Å
    assert not script.same_positions(crystal, moved)
    swapped = Crystal(crystal.lattice, np.array([17, 11, 17]), crystal.frac_coords)
    assert not script.same_positions(crystal, swapped)


def test_the_table(script, capsys):
    assert script.main(["--data-dir", str(ROOT / "data" / "prototypes"), "--num", "40"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("40 of 6,000 crystals")
    rows = [line.strip("| ").split(" | ") for line in said.splitlines() if line.startswith("|")]
    table = {row[0]: dict(zip(script.HEADER, row, strict=True)) for row in rows[2:]}
    assert list(table) == ["niggli", "primitive", "conventional", "as_given"]
    assert table["niggli"]["same cell"] == "100.0 %"
    assert table["niggli"]["other number of atoms"] == "0.0 %"
    assert table["as_given"]["same cell"] == "0.0 %"
    mean = {cell: float(row["atoms, mean"]) for cell, row in table.items()}
    assert mean["primitive"] <= mean["niggli"] == mean["as_given"] <= mean["conventional"]


def test_a_folder_without_crystals(script, tmp_path, capsys):
    assert script.main(["--data-dir", str(tmp_path)]) == 1
    assert "contains neither" in capsys.readouterr().err
