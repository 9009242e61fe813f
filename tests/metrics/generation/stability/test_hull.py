"""Energies above the hull."""

import json

import pytest
from pymatgen.core import Composition

from src.metrics.generation.stability.hull import Entry, Hull, parts_of, read_phase_diagram
from src.utils.errors import UserError

# formation energies: A 0, B 0, AB -1, A3B -0.4 (eV/atom); on the line from A to AB, A3B has -0.5
ENTRIES = [
    Entry("Na", -1.0, "a"),
    Entry("Na2", -0.7, "a, less stable"),
    Entry("Cl2", -2.0, "b"),
    Entry("NaCl", -2.5, "ab"),
    Entry("Na3Cl", -1.65, "a3b"),
]


@pytest.mark.parametrize(
    ("formula", "energy", "expected"),
    [
        ("Na", -1.0, 0.0),
        ("Na4", -0.9, 0.1),
        ("NaCl", -2.5, 0.0),
        ("Na2Cl2", -2.7, -0.2),  # below the hull, of which it is no part
        ("Na3Cl", -1.65, 0.1),
        ("NaCl3", -2.0, 0.25),
        ("KCl", -3.0, None),  # nothing is known of K
        ("K", -3.0, None),
    ],
)
def test_above(formula, energy, expected):
    found = Hull(ENTRIES).above(Composition(formula), energy)
    assert found == (None if expected is None else pytest.approx(expected))


def test_parts_of_a_system():
    known = {frozenset("A"), frozenset("AB"), frozenset("ABC"), frozenset("BD")}
    expected = [frozenset("A"), frozenset("AB"), frozenset("ABC")]
    assert parts_of(frozenset("ABC"), known) == expected
    assert parts_of(frozenset("ABCEFGH"), known) == expected  # which looks through the known ones


def test_an_own_phase_diagram(tmp_path):
    rows = [{"formula": e.formula, "energy_per_atom": e.energy, "id": e.id} for e in ENTRIES]
    (tmp_path / "pd.json").write_text(json.dumps(rows))
    lines = [f'{e.formula},{e.energy},"{e.id}"' for e in ENTRIES]
    (tmp_path / "pd.csv").write_text("\n".join(["formula,energy_per_atom,id", *lines]))
    for name in ("pd.json", "pd.csv"):
        assert read_phase_diagram(tmp_path / name) == ENTRIES


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "formula,energy\nNaCl,1\n", "row 1 has no energy_per_atom; it has formula, en"),
        ("a.csv", "formula,energy_per_atom\nNaCl,1\nNaCl,nan\n", "row 2: energy_per_atom is 'nan'"),
        ("a.csv", "formula,energy_per_atom\nQx,1\n", "row 1: 'Qx' is not a formula"),
        ("a.csv", "formula,energy_per_atom\n,1\n", "row 1: '' is not a formula"),
        ("a.csv", "formula,energy_per_atom\n", "has no entries"),
        ("a.csv", "", "cannot be read as a CSV"),
        ("a.json", "{", "cannot be read as JSON"),
        ("a.json", "{}", "must be a list"),
        ("a.json", "[1]", "row 1 is not an object"),
        (None, "", "there is no file"),
    ],
)
def test_phase_diagrams_that_cannot_be_read(tmp_path, name, text, message):
    if name is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_phase_diagram(tmp_path / (name or "b.csv"))
