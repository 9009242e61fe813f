import csv
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import warnings
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import gemmi
import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Composition, Lattice, Structure

from tests.crystals import rock_salt

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "make_prototypes.py"
FILES = ROOT / "data" / "prototypes"
SPLITS = ("train", "val", "test")
PYMATGEN = "2026.10.24"  # the version that made the files in data/prototypes


class Crystal(NamedTuple):
    split: str
    row: dict[str, str]
    structure: Structure


def read_with_gemmi(cif: str) -> Structure:
    """Much faster than pymatgen's reader, and independent of it."""
    block = gemmi.cif.read_string(cif).sole_block()
    cell = gemmi.make_small_structure_from_block(block).cell
    sites = block.find("_atom_site_", ["type_symbol", "fract_x", "fract_y", "fract_z"])
    return Structure(
        Lattice.from_parameters(*cell.parameters),
        [site[0] for site in sites],
        [[float(site[axis]) for axis in (1, 2, 3)] for site in sites],
    )


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_prototypes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        # pymatgen reads the references of the prototypes with an old bibtexparser.
        warnings.filterwarnings("ignore", module="bibtexparser")
        warnings.filterwarnings("ignore", "warn_ungrouped_named_tokens_in_collection")
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def crystals() -> list[Crystal]:
    """The committed crystals of all splits."""
    found = []
    for split in SPLITS:
        with open(FILES / f"{split}.csv", encoding="utf-8", newline="") as file:
            found += [
                Crystal(split, row, read_with_gemmi(row["cif"])) for row in csv.DictReader(file)
            ]
    return found


def test_files_hold_the_promised_crystals(crystals: list[Crystal]) -> None:
    assert Counter(crystal.split for crystal in crystals) == {
        "train": 5000,
        "val": 500,
        "test": 500,
    }
    assert len({crystal.row["material_id"] for crystal in crystals}) == len(crystals)
    assert sum((FILES / f"{split}.csv").stat().st_size for split in SPLITS) < 6e6


def test_splits_share_no_prototype_and_formula(crystals: list[Crystal]) -> None:
    # No pair appears twice at all, so none is in two splits.
    pairs = {(crystal.row["prototype"], crystal.row["formula"]) for crystal in crystals}
    assert len(pairs) == len(crystals)


def test_columns_describe_the_structure(crystals: list[Crystal]) -> None:
    for _, row, structure in crystals:
        assert row["formula"] == structure.composition.reduced_formula
        assert row["material_id"] == f"{row['prototype']}-{row['formula']}"
        volume_per_atom = structure.volume / len(structure)
        assert float(row["volume_per_atom"]) == pytest.approx(volume_per_atom, rel=2e-4)


def test_crystals_are_sane(crystals: list[Crystal], script: ModuleType) -> None:
    elements = {element.symbol for element in script.ELEMENTS}
    for _, _, structure in crystals:
        assert {site.specie.symbol for site in structure} <= elements
        assert structure.frac_coords.min() >= 0
        assert structure.frac_coords.max() < 1
        assert structure.get_neighbor_list(0.9)[3].size == 0
        assert max(structure.lattice.lengths) < 6.01 * min(structure.lattice.lengths)
        assert 5 <= structure.volume / len(structure) <= 80
    num_atoms = [len(structure) for _, _, structure in crystals]
    assert (min(num_atoms), max(num_atoms)) == (1, 20)
    assert 7 < np.mean(num_atoms) < 10


def test_training_elements_are_diverse(crystals: list[Crystal]) -> None:
    train = [structure for split, _, structure in crystals if split == "train"]
    assert len({site.specie for structure in train for site in structure}) >= 70


@pytest.mark.filterwarnings("ignore:Issues encountered while parsing CIF:UserWarning")
def test_pymatgen_reads_the_same_crystals(crystals: list[Crystal]) -> None:
    for _, row, expected in crystals[::40]:
        structure = Structure.from_str(row["cif"], fmt="cif")
        assert structure.species == expected.species
        np.testing.assert_allclose(
            structure.lattice.parameters, expected.lattice.parameters, atol=1e-9
        )
        difference = structure.frac_coords - expected.frac_coords
        # pymatgen moves coordinates within 1e-4 of 1/3 and 2/3 onto these.
        np.testing.assert_allclose(difference - np.round(difference), 0, atol=1.01e-4)


def test_no_crystal_matches_one_of_another_split(crystals: list[Crystal]) -> None:
    matcher = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
    of_formula = defaultdict(list)
    for crystal in crystals:
        of_formula[crystal.row["formula"]].append(crystal)
    pairs = [
        (first, second)
        for group in of_formula.values()
        for first, second in combinations(group, 2)
        if first.split != second.split
    ]
    assert len(pairs) > 500
    for index in np.random.default_rng(0).permutation(len(pairs))[:500]:
        first, second = pairs[index]
        assert not matcher.fit(first.structure, second.structure), (
            f"{first.row['material_id']} and {second.row['material_id']} match"
        )


@pytest.mark.parametrize(
    ("formula", "balanced"),
    [("NaCl", True), ("CaTiO3", True), ("NaCl2", False), ("AuCu", False), ("Si", False)],
)
def test_is_balanced(script: ModuleType, formula: str, balanced: bool) -> None:
    assert script.is_balanced(Composition(formula)) is balanced


def test_is_plausible(script: ModuleType) -> None:
    salt = rock_salt(5.64, "Na", "Cl")
    assert script.is_plausible(salt)
    for volume in (salt.volume / 8, salt.volume * 8):
        scaled = salt.copy()
        scaled.scale_lattice(volume)
        assert not script.is_plausible(scaled)
    assert not script.is_plausible(salt * (7, 1, 1))


@pytest.mark.slow
def test_small_run_is_deterministic_and_leaves_whole_files(
    script: ModuleType, tmp_path: Path
) -> None:
    sizes = ["--train", "12", "--val", "3", "--test", "3"]
    for name in ("first", "second"):
        script.main([*sizes, "--output", str(tmp_path / name)])
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == ["test.csv", "train.csv", "val.csv"]
    for name in names:
        content = (tmp_path / "first" / name).read_bytes()
        assert content == (tmp_path / "second" / name).read_bytes()
    with open(tmp_path / "first" / "train.csv", encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 12


def test_empty_split_is_refused(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        script.main(["--val", "0", "--output", str(tmp_path)])
    assert "at least one crystal" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_full_run_gives_the_committed_bytes(tmp_path: Path) -> None:
    installed = importlib.metadata.version("pymatgen")
    if installed != PYMATGEN:
        pytest.skip(f"the files were made with pymatgen {PYMATGEN}, here is {installed}")
    subprocess.run(
        [sys.executable, str(SCRIPT), "--output", str(tmp_path)],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "1"},
    )
    for split in SPLITS:
        assert (tmp_path / f"{split}.csv").read_bytes() == (FILES / f"{split}.csv").read_bytes()
