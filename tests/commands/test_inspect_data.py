"""Inspect small data sets with known contents."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from pymatgen.core import Lattice, Structure

from src.commands.inspect_data import inspect_data, last_line
from src.data.cif import write_cif
from src.data.readers import DataError
from src.data.structures import to_crystal
from src.metrics.matching import PYMATGEN
from src.metrics.space_groups import SYMPREC
from src.utils.output import OutputError
from tests.crystals import face_centered, rock_salt

ROOT = Path(__file__).resolve().parents[2]
CENTERED = [[0, 0, 0], [0.5, 0.5, 0.5]]
ROCKSALT = rock_salt(5.6, "Na", "Cl")
CSCL = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], CENTERED)
LIF = Structure(Lattice.cubic(2.6), ["Li", "F"], CENTERED)
IRON = Structure(Lattice.cubic(2.9), ["Fe", "Fe"], CENTERED)
COPPER = face_centered(3.6, "Cu")


def redescribed(structure: Structure) -> Structure:
    """The same crystal with a sheared and doubled cell, another origin and reversed atoms."""
    other = structure * [[1, 1, 0], [0, 1, 0], [0, 0, 2]]
    other.translate_sites(range(len(other)), [0.1, 0.2, 0.3])
    return Structure.from_sites(other[::-1])


def cif(structure: Structure) -> str:
    return write_cif(to_crystal(structure), "x")


PARTIAL = """data_x
_cell_length_a 4
_cell_length_b 4
_cell_length_c 4
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
loop_
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Fe 0 0 0 0.5
"""
OVERLAP = PARTIAL.replace("0.5\n", "1\nFe 0.05 0 0 1\n")


def write_split(folder: Path, split: str, crystals: dict[str, Structure | str], **columns) -> None:
    folder.mkdir(exist_ok=True)
    cifs = [c if isinstance(c, str) else cif(c) for c in crystals.values()]
    table = pd.DataFrame({"material_id": list(crystals), "cif": cifs, **columns})
    table.to_csv(folder / f"{split}.csv", index=False)


@pytest.fixture
def inspect(tmp_path, monkeypatch):
    monkeypatch.setenv("PROJECT_ROOT", str(tmp_path))

    def run(*overrides: str) -> dict:
        given = [
            "data=default", f"data.data_dir={tmp_path / 'mine'}", f"output={tmp_path / 'out'}",
            "num_workers=0", *overrides,
        ]  # fmt: skip
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            return inspect_data(compose("inspect_data", overrides=given))

    return run


@pytest.fixture
def planted(tmp_path):
    """Two duplicates within train, two test and one val crystal in train, three invalid ones."""
    folder = tmp_path / "mine"
    train = {
        "salt": ROCKSALT, "cscl": CSCL, "part-1": PARTIAL, "salt-again": redescribed(ROCKSALT),
        "lif": LIF, "part-2": PARTIAL, "salt-small": ROCKSALT.copy().scale_lattice(150),
    }  # fmt: skip
    gap = [8.5, 6.0, 1.0, np.nan, 14.0, 1.0, 9.0]
    write_split(folder, "train", train, gap=gap)
    write_split(folder, "val", {"lif-moved": redescribed(LIF), "close": OVERLAP}, gap=[14.5, 1])
    test = {"cscl-2": redescribed(CSCL), "iron": IRON, "salt-2": ROCKSALT, "iron-2": IRON}
    write_split(folder, "test", test)  # no gaps
    return folder


@pytest.fixture
def unrendered(monkeypatch):
    """For tests that do not look at charts: they are made, but not drawn, which takes longest."""
    monkeypatch.setattr("src.inspection.page._svg", lambda figure: "<svg></svg>")


@pytest.mark.usefixtures("unrendered")
def test_planted_duplicates_and_rejections_are_found(inspect, planted, tmp_path, capsys):
    summary = inspect("data.properties=[gap]")
    line = (
        "3 of 13 rejected: 2 partial occupancy, 1 overlapping atoms. "
        "1 crystal of val and 2 of test are in train."
    )
    assert summary["line"] == line
    assert capsys.readouterr().out.splitlines()[-1] == line
    folder = tmp_path / "out"
    names = ["duplicates.csv", "index.html", "rejected.csv", "summary.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert json.loads((folder / "summary.json").read_text()) == summary

    duplicates = summary["duplicates"]
    assert duplicates["found"] == {
        "train": {"train": 2},
        "val": {"train": 1, "val": 0},
        "test": {"train": 2, "val": 0, "test": 1},
    }
    assert duplicates["copies"] == duplicates["found"]
    assert duplicates["asked"] == {"train": 5, "val": 1, "test": 4}
    assert duplicates["num_unanswered"] == duplicates["num_checked"] == 0
    pairs = pd.read_csv(folder / "duplicates.csv", index_col=["split", "id", "in_split"])
    found = pairs["matches"].to_dict()
    assert found.pop(("train", "salt-small", "train")) in ("salt", "salt-again")
    assert found.pop(("test", "salt-2", "train")) in ("salt", "salt-again", "salt-small")
    assert found == {
        ("train", "salt-again", "train"): "salt",
        ("val", "lif-moved", "train"): "lif",
        ("test", "cscl-2", "train"): "cscl",
        ("test", "iron-2", "test"): "iron",
    }
    assert pairs["rms"].max() < 1e-3
    again = pairs.loc["train", "salt-again", "train"]
    assert (again.formula, again.num_atoms, again.matched_num_atoms) == ("NaCl", 16, 8)
    ratio = pairs.loc[("train", "salt-small", "train"), "volume_ratio"]
    assert ratio == pytest.approx(150 / ROCKSALT.volume, rel=1e-4)  # the matcher ignores the volume

    rejected = pd.read_csv(folder / "rejected.csv")
    assert rejected[["split", "where", "material_id", "kind"]].values.tolist() == [
        ["train", "train.csv row 2", "part-1", "partial occupancy"],
        ["train", "train.csv row 5", "part-2", "partial occupancy"],
        ["val", "val.csv row 1", "close", "overlapping atoms"],
    ]
    assert summary["rejected"] == {"partial occupancy": 2, "overlapping atoms": 1}


@pytest.mark.usefixtures("unrendered")
def test_split_summaries(inspect, planted):
    splits = inspect("data.properties=[gap]")["splits"]
    assert [(split["crystals"], split["rejected"]) for split in splits.values()] == [
        (5, 2), (1, 1), (4, 0)
    ]  # fmt: skip
    figures = splits["train"]["figures"]
    gap = {"min": 6.0, "mean": pytest.approx(9.375), "max": 14.0, "missing": 1}
    assert figures["y.gap"] == gap
    assert splits["test"]["figures"]["y.gap"] == {
        "min": None, "mean": None, "max": None, "missing": 4
    }  # fmt: skip
    iron = splits["test"]["figures"]
    assert iron["num_atoms"] == {"min": 2, "mean": 4, "max": 8, "missing": 0}
    assert iron["density"]["max"] == pytest.approx(IRON.density, rel=1e-4)
    assert iron["volume_per_atom"]["min"] == pytest.approx(2.9**3 / 2, rel=1e-5)
    assert iron["min_distance"]["min"] == pytest.approx(2.9 * np.sqrt(3) / 2, rel=1e-5)
    assert iron["a"]["max"] == pytest.approx(5.6, rel=1e-5)
    assert figures["alpha"]["mean"] == pytest.approx(90, abs=15)
    assert splits["train"]["space_groups"] == {"225": 3, "221": 2}
    assert splits["test"]["space_groups"] == {"229": 2, "221": 1, "225": 1}
    assert splits["test"]["crystal_systems"] == {"cubic": 4}
    assert splits["train"]["elements"] == {"Li": 1, "F": 1, "Na": 3, "Cl": 4, "Cs": 1}
    assert splits["test"]["elements_not_in_train"] == {"Fe": 2}
    assert splits["val"]["elements_not_in_train"] == {}


def test_the_page_is_self_contained_and_escapes_text(inspect, planted, tmp_path):
    hostile = "<script>alert(1)</script>"
    write_split(planted, "val", {hostile: LIF, "<b>": PARTIAL})
    summary = inspect("data.properties=[gap]")
    page = (tmp_path / "out" / "index.html").read_text()
    assert re.findall(r"""(?:https?:)?//\w[^"'\s<]*|<script|<link|<img|url\(h""", page) == []
    assert "default-src 'none'" in page
    assert summary["line"] in page
    assert hostile not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 1  # in the table of pairs
    assert "var(--test)" in page
    assert "#050607" not in page
    # elements, eleven quantities, the gap, crystal systems, rms
    assert page.count("<svg") == page.count("<figure") == 15
    for label in ("volume per atom, Å³", "α, degrees", "density, g/cm³", ">gap<", "cubic"):
        assert label in page
    assert len(page) < 400_000


def test_clean_data(inspect, tmp_path):
    folder = tmp_path / "mine"
    write_split(folder, "train", {"a": ROCKSALT, "b": LIF})
    write_split(folder, "val", {"c": CSCL})
    write_split(folder, "test", {"d": COPPER})
    summary = inspect()
    assert summary["line"] == "Nothing rejected of 4. No crystal of val or test is in train."
    assert pd.read_csv(tmp_path / "out" / "duplicates.csv").empty
    assert pd.read_csv(tmp_path / "out" / "rejected.csv").columns.tolist() == [
        "split", "where", "material_id", "kind", "reason"
    ]  # fmt: skip


@pytest.mark.parametrize("val", [{}, {"x": PARTIAL}], ids=["empty", "all rejected"])
def test_a_split_without_crystals(inspect, tmp_path, val):
    folder = tmp_path / "mine"
    write_split(folder, "train", {"a": ROCKSALT, "b": LIF})
    write_split(folder, "val", val)
    write_split(folder, "test", {"c": LIF})
    summary = inspect()
    assert summary["splits"]["val"]["crystals"] == 0
    assert summary["splits"]["val"]["figures"]["density"]["mean"] is None
    start = "1 of 4 rejected: 1 partial occupancy." if val else "Nothing rejected of 3."
    assert summary["line"] == f"{start} 1 crystal of test is in train."


def test_only_one_split(inspect, tmp_path):
    write_split(tmp_path / "mine", "train", {"a": ROCKSALT, "b": PARTIAL})
    end = "Train was not compared with val and test: one of the two sides has no crystals."
    assert inspect()["line"] == f"1 of 2 rejected: 1 partial occupancy. {end}"


def test_all_crystals_are_rejected(inspect, tmp_path):
    write_split(tmp_path / "mine", "train", {"a": PARTIAL, "b": PARTIAL})
    assert inspect()["line"].startswith("2 of 2 rejected: 2 partial occupancy.")
    assert "<svg" not in (tmp_path / "out" / "index.html").read_text()


def test_all_crystals_are_rejected_before_splitting(inspect, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.cif").write_text(PARTIAL)
    summary = inspect("data=cif_folder")
    assert summary["line"].startswith("1 of 1 rejected: 1 partial occupancy.")
    assert pd.read_csv(tmp_path / "out" / "rejected.csv")["where"].tolist() == ["a.cif"]


@pytest.mark.usefixtures("unrendered")
def test_a_folder_of_files(inspect, tmp_path):
    folder = tmp_path / "mine" / "deep"
    folder.mkdir(parents=True)
    for i in range(9):
        (folder / f"{i}.cif").write_text(cif(ROCKSALT))
    (folder / "9.cif").write_text(PARTIAL)
    summary = inspect("data=cif_folder")
    assert re.fullmatch(
        r"1 of 10 rejected: 1 partial occupancy\. "
        r"(1 crystal of (val|test) is|1 crystal of val and 1 of test are) in train\.",
        summary["line"],
    )
    rejected = pd.read_csv(tmp_path / "out" / "rejected.csv")
    assert rejected["where"].tolist() == ["deep/9.cif"]


@pytest.mark.usefixtures("unrendered")
def test_the_last_line_says_if_not_all_pairs_were_compared(inspect, tmp_path):
    folder = tmp_path / "mine"
    different = []
    for seed in range(6):
        crystal = ROCKSALT.copy()
        for i, shift in enumerate(np.random.default_rng(seed).normal(size=(8, 3))):
            crystal.translate_sites([i], 0.9 * shift, frac_coords=False)
        different.append(crystal)
    write_split(folder, "train", {str(i): s for i, s in enumerate(different[:4])})
    write_split(folder, "test", {"new": different[4], "known": redescribed(different[2])})
    strict = ["tolerances.stol=0.01", "max_compared=1", "data.min_distance=0.1"]
    summary = inspect(*strict, "max_check=0")
    end = "At least 1 crystal of test is in train (not all pairs were compared)."
    assert summary["line"] == f"Nothing rejected of 6. {end}"
    assert summary["duplicates"]["cut_short"]["test"] == {"train": 1, "test": 0}

    summary = inspect(*strict, "max_check=1000", "overwrite=true")  # enough for all pairs
    assert summary["line"] == "Nothing rejected of 6. 1 crystal of test is in train."
    assert summary["duplicates"]["num_checked"] == 3
    page = (tmp_path / "out" / "index.html").read_text()
    assert (
        "3 of the cut-short crystals, drawn at random, were compared with all candidates: "
        "0 matched, 0 as copies" in page
    )


@pytest.mark.usefixtures("unrendered")
def test_a_random_selection_of_crystals(inspect, planted):
    summary = inspect("max_crystals=2", "seed=1")
    assert summary["duplicates"]["asked"] == {"train": 2, "val": 1, "test": 2}
    assert summary["splits"]["test"]["figures"]["min_distance"]["missing"] == 2
    assert summary["splits"]["test"]["figures"]["density"]["missing"] == 0
    assert sum(summary["splits"]["test"]["space_groups"].values()) == 2
    num = summary["duplicates"]["found"]["test"]["train"]
    end = f"1 of 1 crystals drawn from val and {num} of 2 crystals drawn from test are in train."
    assert summary["line"].endswith(end.replace("are", "is") if num == 0 else end)


def lines(**changes) -> dict:
    """A summary of 5,000 crystals, for `last_line`."""
    of_train = {"train": 0}
    duplicates = {
        "found": {"val": dict(of_train), "test": dict(of_train)},
        "cut_short": {"val": dict(of_train), "test": dict(of_train)},
        "unanswered": {"val": dict(of_train), "test": dict(of_train)},
        "asked": {"train": 4000, "val": 500, "test": 500},
        "num_not_reduced": changes.get("num_not_reduced", 0),
    }
    for key, value in changes.items():
        if key in ("found", "cut_short", "unanswered"):
            duplicates[key]["test"]["train"] = value
    rejected = changes.get("rejected", {})
    splits = {
        "train": {"crystals": 4000 - sum(rejected.values())},
        "val": {"crystals": 500},
        "test": {"crystals": 500},
    }
    return {"splits": splits, "rejected": rejected, "duplicates": duplicates}


def test_the_last_line():
    known = lines(found=37, rejected={"partial occupancy": 398, "overlapping atoms": 14})
    assert last_line(known) == (
        "412 of 5,000 rejected: 398 partial occupancy, 14 overlapping atoms. "
        "37 crystals of test are in train."
    )
    many = lines(rejected={"a": 1000, "b": 4, "c": 3, "d": 2, "e": 1})
    assert last_line(many) == (
        "1,010 of 5,000 rejected: 1,000 a, 4 b, 3 c, 3 for other reasons. "
        "No crystal of val or test is in train."
    )
    for incomplete in (lines(unanswered=1), lines(cut_short=1), lines(num_not_reduced=1)):
        assert last_line(incomplete) == (
            "Nothing rejected of 5,000. "
            "No crystal of val or test was found in train, but not all pairs were compared."
        )


@pytest.mark.usefixtures("unrendered")
def test_results_are_not_overwritten_by_default(inspect, planted):
    inspect()
    with pytest.raises(OutputError, match="overwrite=true"):
        inspect()
    assert inspect("overwrite=true")["line"]


def test_no_data(inspect, tmp_path):
    with pytest.raises(DataError, match="no folder"):
        inspect()
    write_split(tmp_path / "mine", "train", {})
    with pytest.raises(DataError, match="contains no crystals"):
        inspect()
    assert not (tmp_path / "out").exists()


def test_the_config_has_the_defaults_of_the_code():
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("inspect_data")
    assert dict(cfg.tolerances) == {n: getattr(PYMATGEN, n) for n in PYMATGEN.__slots__}
    assert cfg.symprec == SYMPREC


@pytest.mark.slow
def test_command(planted, tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "inspect_data.py"), "num_workers=1"]
    given = ["data=default", f"data.data_dir={planted}", f"paths.cache_dir={tmp_path / 'cache'}"]
    done = subprocess.run([*command, *given], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("1 crystal of val and 2 of test are in train.")
    assert (tmp_path / "inspection" / "index.html").is_file()
    again = subprocess.run([*command, *given], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 1
    assert "overwrite=true" in again.stdout + again.stderr
