"""Both matchers are compared, an interrupted comparison continues, and differences are recorded."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Structure

from src.data.structures import write_structures
from src.metrics.matching import PairResult

ROOT = Path(__file__).resolve().parents[2]
SETS = ["mp_20", "perov_5", "carbon_24", "mpts_52"]


@pytest.fixture(scope="module")
def module():
    path = ROOT / "scripts" / "compare_matchers.py"
    spec = importlib.util.spec_from_file_location("compare_matchers", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def script(module, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 2)
    monkeypatch.setattr(module, "STABILITY", 1)
    return module


def run(script, out: Path, pairs: int) -> dict:
    script.main(["--families", "prototypes", "--pairs", str(pairs), "--out", str(out)])
    return json.loads((out / "counts.json").read_text())["prototypes"]


def test_it_goes_on_where_it_stopped(script, tmp_path):
    first = run(script, tmp_path, 2)
    assert (first["pairs"], first["asked again"], first["disagreements"]) == (2, 4, 0)
    assert run(script, tmp_path, 2) == first
    second = run(script, tmp_path, 3)
    assert second["pairs"] == 4
    assert second["compared"] == 2 * first["compared"]
    assert second["pymatgen"] > first["pymatgen"]


def test_once_takes_the_four_ways_in_turn(script, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(script, "pymatgen_rms", lambda pair, settings: seen.append(settings))
    monkeypatch.setattr(script, "pymatgen_fit", lambda pair, settings: seen.append("fit"))
    monkeypatch.setattr(script, "agree", lambda ours, theirs: True)
    monkeypatch.setattr(script, "variants", lambda *args: [None, None])
    script.main(["--once", "--families", "single", "--pairs", "16", "--out", str(tmp_path)])
    one_round = [script.CDVAE, script.UNREDUCED, script.CDVAE, "fit"]
    other_round = [script.CDVAE, script.UNREDUCED, script.UNREDUCED, "fit"]
    assert seen[::2] == one_round + other_round  # two pairs of a chunk


def test_what_differs_is_kept_with_its_cause(script, tmp_path, monkeypatch):
    monkeypatch.setattr(
        script, "match", lambda first, second, settings, compiled: [PairResult("matched", 7.0)] * 2
    )
    counts = run(script, tmp_path, 2)
    lines = [json.loads(line) for line in (tmp_path / "disagreements.jsonl").open()]
    assert counts["disagreements"] == len(lines) == counts["compared"] * 3 / 4  # all but the fits
    assert {line["cause"] for line in lines} == {"unexplained"}
    assert all(len(line["pymatgen on variants"]) == 8 for line in lines)


@pytest.mark.filterwarnings("ignore:Issues encountered while parsing CIF")
def test_pairs_come_from_their_numbers_alone(script, shared_data, tmp_path):
    families = script.Families(shared_data, ROOT / "data" / "prototypes" / "vae.ckpt", tmp_path)
    assert families.names[13:17] == [f"decoded_{name}" for name in SETS]
    assert len(script.Families(shared_data).names) == 13
    for name in families.names:
        if name in ("polymorphs", "carbon_pairs", "generated"):  # they read a whole set
            continue
        once, again = (families.pair(name, 0, 0) for _ in range(2))
        for a, b in zip(once, again, strict=True):
            np.testing.assert_array_equal(a.frac_coords, b.frac_coords)
        assert once[0].composition == once[1].composition or not name.startswith("decoded_")


def test_generated_crystals_meet_known_ones_of_their_formula(script, tmp_path):
    (tmp_path / "mp_20").mkdir()
    text = pd.read_csv(ROOT / "data" / "prototypes" / "test.csv")["cif"][0]
    known = Structure.from_str(text, fmt="cif")
    known.to(tmp_path / "known.cif")
    rows = {"material_id": ["known"], "cif": [(tmp_path / "known.cif").read_text()]}
    pd.DataFrame(rows).to_csv(tmp_path / "mp_20" / "test.csv")
    unknown = Structure(known.lattice, ["Xe"], [[0, 0, 0]])
    write_structures(tmp_path / "samples.extxyz", [unknown, known], ["0", "1"])
    families = script.Families(tmp_path, samples=tmp_path / "samples.extxyz")
    assert families.names[-1] == "generated"
    for number in range(4):
        pair = families.pair("generated", 0, number)
        assert {crystal.formula for crystal in pair} == {known.formula}
