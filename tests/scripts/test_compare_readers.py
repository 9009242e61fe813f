"""The comparison of readers finds what is read the same, better, refused, and unexplained."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from src.data.cif import read_cif, write_cif
from src.data.crystal import Crystal
from tests.data.test_cif import group, make_cif
from tests.data.test_crystal import salt

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch):
    path = ROOT / "scripts" / "compare_readers.py"
    spec = importlib.util.spec_from_file_location("compare_readers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "compare_readers", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore")
def test_the_table(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script.logging, "disable", lambda level: None)
    cubic = (5.64, 5.64, 5.64, 90, 90, 90)
    (tmp_path / "same.cif").write_text(write_cif(salt(), "x"))
    (tmp_path / "refused.cif").write_text(make_cif(cubic, ["x NH3 0 0 0"]))
    better = "_space_group.IT_number 225\n_chemical_formula_sum NaCl\n_cell_formula_units_Z 4"
    (tmp_path / "better.cif").write_text(
        make_cif(cubic, ["Na Na 0 0 0", "Cl Cl 0.5 0.5 0.5"], better)
    )
    assert script.main([f"mine={tmp_path}", "--list"]) == 0
    shown = capsys.readouterr().out
    assert "mine: refused.cif 0: refused: unknown element" in shown
    assert "| the same |  | 1 |" in shown
    assert "| all | | 3 |" in shown
    assert "unexplained" not in shown
    other = Crystal(9 * np.eye(3), np.array([11, 17]), salt().frac_coords)
    monkeypatch.setattr(script, "OTHERS", {"pymatgen": lambda file: [other]})
    assert script.main([str(tmp_path)]) == 1
    assert "| unexplained | pymatgen reads 729 Å^3 instead of 64 |" in capsys.readouterr().out


def test_a_part_of_the_cell(script):
    whole = read_cif(make_cif((5, 6, 7, 90, 105, 90), ["C C .1 .2 .3"], group("P 21/c")))
    part = Crystal(whole.lattice, whole.atom_types[:1], whole.frac_coords[:1])
    assert script.is_part(part, whole)
    assert not script.is_part(whole, whole)
    assert script.difference(whole, part) == "C1 instead of C4"
