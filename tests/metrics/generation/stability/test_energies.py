"""Energies and relaxations, by ASE's own potentials."""

import math

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from src.data.crystal import Crystal, CrystalError
from src.data.structures import to_crystal
from src.metrics.generation.stability import energies
from src.metrics.generation.stability.energies import (
    Relaxation,
    as_lists,
    from_lists,
    relax,
    single_point,
)
from src.metrics.generation.stability.potentials import find_potential, open_calculator
from src.utils.errors import UserError

COPPER = to_crystal(bulk("Cu", cubic=True))


def displaced(size: float) -> Crystal:
    shifts = np.random.default_rng(0).normal(0, size, (4, 3)) / 3.6
    return Crystal(COPPER.lattice * 1.02, COPPER.atom_types, (COPPER.frac_coords + shifts) % 1.0)


def test_a_relaxed_crystal_has_the_lowest_energy_and_no_forces():
    given = displaced(0.1)
    before = single_point(given, EMT())
    after = relax(given, EMT(), Relaxation(fmax=0.02))
    assert before["force"] > 0.5
    assert after["force"] < 0.02
    assert after["converged"]
    assert after["energy"] < before["energy"]
    assert max(map(abs, after["stress"])) < 0.4 < max(map(abs, before["stress"]))  # GPa
    # EMT's own constant is 3.59 Å; fcc again, which the displaced crystal matches
    relaxed = from_lists(after["crystal"])
    assert np.linalg.norm(relaxed.lattice, axis=1) == pytest.approx([3.59] * 3, abs=0.02)
    assert after["volume_change"] == pytest.approx((3.59 / (3.61 * 1.02)) ** 3 - 1, abs=0.01)
    assert after["matches"]
    assert 0.02 < after["rmsd"] < 0.2
    # in Å, over the free length per atom
    assert after["rms"] == pytest.approx(after["rmsd"] / 2.3, rel=0.03)
    assert as_lists(relaxed) == after["crystal"]


def test_limits():
    ended = relax(displaced(0.1), EMT(), Relaxation(fmax=1e-6, max_steps=2))
    assert (ended["converged"], ended["steps"]) == (False, 2)
    with pytest.raises(TimeoutError, match=r"within 1e-09 s"):
        relax(displaced(0.1), EMT(), time_limit=1e-9)


def test_what_cannot_be_judged(monkeypatch):
    clash = Crystal(COPPER.lattice, COPPER.atom_types[:2], np.array([[0.0, 0, 0], [0.05, 0, 0]]))
    with pytest.raises(CrystalError, match="closer than 0"):
        single_point(clash, EMT())

    class Broken(EMT):
        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)
            self.results["energy"] = math.nan

    with pytest.raises(CrystalError, match="not finite"):
        single_point(COPPER, Broken())
    monkeypatch.setattr(energies, "VOLUME_RANGE", (0.99, 1.01))
    with pytest.raises(CrystalError, match="volume changed"):
        relax(displaced(0.1), EMT())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chgnot", "neither chgnet nor sevenn"),
        ("ase.calculators.emt.EMTT", "cannot be imported"),
        ("ase.units.GPa", "not a class or function"),
        ("ase.calculators.singlepoint.SinglePointCalculator", "cannot be made without arguments"),
        ("ase.Atoms", "not an ASE calculator"),
    ],
)
def test_potentials_that_there_are_not(name, message):
    with pytest.raises(UserError, match=message):
        open_calculator(name)


def test_what_identifies_a_potential(tmp_path, monkeypatch):
    found = find_potential("ase.calculators.emt.EMT")
    assert found.label == "emt"
    assert found.version.startswith("ase 3.")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_potential.py").write_text("from ase.calculators.emt import EMT as Mine\n")
    (tmp_path / "other_potential.py").write_text("class Mine:\n    pass\n")
    assert find_potential("my_potential.Mine").version == found.version
    own = find_potential("other_potential.Mine").version
    assert own.startswith("other_potential.py ")
    with pytest.raises(UserError, match="not an ASE calculator"):
        open_calculator("other_potential.Mine")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "package"), [("chgnet", "chgnet"), ("sevenn", "sevenn")])
def test_potentials_that_come_with_their_weights(name, package):
    pytest.importorskip(package, reason=f"{package} is not installed")
    calculator = open_calculator(name)
    salt = to_crystal(bulk("NaCl", "rocksalt", 5.69))
    found = relax(salt, calculator)
    assert found["converged"]
    # PBE gives -3.4 eV/atom, and -3.7 with MP's correction for Cl, with which CHGNet was trained
    assert found["energy"] == pytest.approx({"chgnet": -3.7, "sevenn": -3.4}[name], abs=0.1)
    lattice = from_lists(found["crystal"]).lattice
    assert abs(np.linalg.det(lattice)) == pytest.approx(5.69**3 / 4, rel=0.03)
