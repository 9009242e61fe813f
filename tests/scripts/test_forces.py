"""Forces on crystals, by a potential that the extra `stability` installs."""

import json

import pytest

from scripts import forces
from tests.crystals import rock_salt


@pytest.mark.slow
def test_a_displaced_atom_has_a_force_and_gains_energy(tmp_path, capsys):
    pytest.importorskip("chgnet", reason="needs the extra stability")
    for i, shift in enumerate((0.0, 0.05, 0.1)):
        salt = rock_salt(5.69, "Na", "Cl").get_primitive_structure()
        salt.translate_sites([1], [shift, 0, 0])
        salt.to(str(tmp_path / f"{i}.cif"))
    figures = forces.main([str(tmp_path), "--relax", "3", "--json", str(tmp_path / "f.json")])
    assert figures["num_valid"] == 3
    largest, gained = figures["largest_force"], figures["energy_gained"]
    assert 0 <= largest["0.1"] < 0.2 < largest["0.5"] < largest["0.9"]
    assert 0 <= gained["0.1"] < gained["0.9"]
    assert "largest force, eV/Å" in capsys.readouterr().out
    assert json.loads((tmp_path / "f.json").read_text()) == figures
