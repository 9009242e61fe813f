"""The page of a judged set: which crystals are chosen, and what is said of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

pytest.importorskip("matminer")

from src.data.structures import NamedStructure
from src.metrics.generation.evaluate import EvaluationOptions, evaluate_set
from src.metrics.generation.fingerprints import Fingerprint
from src.report import judged as page
from src.report.distributions import element_table, in_bins, of_numbers, of_space_groups
from src.report.judged import Energies, JudgedSet, LatentMap, choose, write_judged_report
from tests.report.test_report import HOSTILE, Page

CENTERED = [[0, 0, 0], [0.5, 0.5, 0.5]]


def cubic(edge: float, *species: str) -> Structure:
    return Structure(Lattice.cubic(edge), species, CENTERED)


def named(**structures: Structure) -> list[NamedStructure]:
    return [NamedStructure(name, s, Path("x")) for name, s in structures.items()]


LINE = Structure(Lattice.orthorhombic(2.6, 7.0, 7.0), ["Li", "F"], [[0, 0, 0], [0.5, 0, 0]])
CLASH = Structure(Lattice.cubic(4.0), ["Cs", "Cl"], [[0, 0, 0], [0.1, 0, 0]])
KNOWN = named(known=cubic(2.6, "Li", "F"), iron=cubic(2.9, "Fe", "Fe"))
ITEMS = named(
    known=cubic(2.6, "Li", "F"), swapped=cubic(4.1, "Cs", "Cl"), line=LINE, clash=CLASH,
    noble=cubic(4.5, "Xe", "Ar"), again=cubic(4.1, "Cs", "Cl"),
)  # fmt: skip


@pytest.fixture(scope="module")
def judged() -> JudgedSet:
    structures = [[item.structure for item in each] for each in (ITEMS, KNOWN)]
    options = EvaluationOptions(fingerprints=False, num_workers=0)
    found = evaluate_set(*structures, None, options)
    found.metrics.update(input=HOSTILE, reference="train.csv")
    return JudgedSet(ITEMS, found, KNOWN, KNOWN, [("valid", "80 %", "")])


@pytest.fixture(autouse=True)
def without_plotly(monkeypatch):
    monkeypatch.setattr(page, "get_plotlyjs", lambda: "/* plotly */")


def test_the_choices(judged):
    energies = Energies([0.2, -0.1, 0.05, None, None, -0.7], "relaxed")
    random, novel, stable, invalid = choose(replace(judged, energies=energies), {}, seed=0)
    assert random.indices == list(range(6))
    assert novel.indices == [2, 1]  # a new prototype of a known formula before a known prototype
    assert stable.indices == [1, 2, 0]
    assert "1 that are more than 0.5 eV/atom below it are left out" in stable.note
    assert invalid.indices == [3, 4]
    assert [each.name for each in choose(judged, {}, 0)] == ["random", "most novel", "invalid"]


def test_the_page(judged, tmp_path):
    energies = Energies([0.2, -0.1, 0.05, None, None, 0.3], "relaxed, by EMT")
    rng = np.random.default_rng(0)
    latents = LatentMap(rng.normal(size=(2, 3)), rng.normal(size=(2, 3)), np.array([1, 0]),
                        np.array([0, 1]), "vae.ckpt")  # fmt: skip
    path = tmp_path / "report.html"
    write_judged_report(path, replace(judged, energies=energies, latents=latents))
    found = Page(path)
    assert "6 generated crystals, judged" in found.html
    assert "<img" not in found.html
    assert not any("src" in attrs for _, attrs in found.elements)
    data = found.data
    assert ["input", HOSTILE] in data["about"]
    assert [choice["name"] for choice in data["choices"]] == [
        "random", "most novel", "most stable", "invalid",
    ]  # fmt: skip
    samples = {sample["id"]: sample for sample in data["samples"]}
    assert samples["known"]["known"]["id"] == "known"
    assert samples["known"]["notes"] == ["known as known", "0.200 eV/atom above the hull"]
    assert samples["line"]["known"]["rms"] is None  # of the same formula
    assert samples["line"]["notes"][0] == "new prototype"
    assert samples["again"]["notes"][:2] == ["same as swapped", "new composition"]
    assert "known" not in samples["swapped"]
    assert "closer than 0.5 Å" in samples["clash"]["reason"]
    assert [len(each["x"]) for each in data["histograms"]][2] == 2  # one or two elements
    systems, groups = data["histograms"][-2:]
    assert (systems["x"][-1], groups["x"][-1]) == ("cubic", "other")
    assert [row[-1] for row in systems["shares"]] == [0.8, 1]  # all but the line of atoms
    assert "Pm-3m (221)" in groups["x"]
    elements = {each["symbol"]: each for each in data["frequencies"]}
    assert (elements["F"]["ours"], elements["F"]["theirs"]) == (0.2, 0.25)
    assert sum(data["energies"]["shares"][0]) == pytest.approx(1)
    assert data["map"]["sets"][1]["ids"] == ["swapped", "known"]


def test_the_nearest_by_fingerprint(judged, tmp_path):
    """Where no known crystal has the formula; it also decides which crystals are most novel."""
    points = [Fingerprint(np.array([x, 0.0]), np.zeros(1), None) for x in (0.0, 5.0, 1.0, 3.0)]
    part = replace(
        judged.evaluation.part,
        fingerprints={1: points[0], 5: "none", 2: points[1]},
        test_fingerprints={1: points[2], 0: points[3]},
    )
    write_judged_report(
        tmp_path / "report.html", replace(judged, evaluation=replace(judged.evaluation, part=part))
    )
    data = Page(tmp_path / "report.html").data
    samples = {sample["id"]: sample for sample in data["samples"]}
    assert samples["swapped"]["known"]["id"] == "iron"
    assert samples["swapped"]["known"]["caption"].endswith("distance 1.00")
    assert "by the distance of its fingerprint" in data["choices"][1]["note"]
    assert "known" not in samples["again"]


def test_what_was_not_computed_is_left_out(judged, tmp_path):
    write_judged_report(tmp_path / "report.html", judged)
    data = Page(tmp_path / "report.html").data
    assert data["energies"] is data["map"] is None


def test_histograms():
    sets = [np.array([0.0, 1.0, 1.0, 9.0]), np.array([5.0])]
    found = in_bins("a", sets, 3)
    assert [sum(shares) for shares in found["shares"]] == pytest.approx([1, 1])
    assert found["shares"][0] == [0.75, 0, 0.25]
    found = of_numbers("a", [np.array([2, 4, 4]), np.array([], dtype=int)])
    assert (found["x"], found["shares"]) == ([2, 3, 4], [[1 / 3, 0, 2 / 3], [0, 0, 0]])
    empty = np.array([], dtype=int)
    assert of_numbers("a", [empty, empty])["x"] == in_bins("a", [empty, empty], 3)["x"] == []
    systems, groups = of_space_groups([np.array([225, 225, 1, 0]), empty])
    assert systems["shares"] == [[0.25, 0, 0, 0, 0, 0, 0.5], [0] * 7]
    assert groups["x"] == ["P1 (1)", "Fm-3m (225)", "other"]
    assert groups["shares"] == [[0.25, 0.5, 0.25], [0, 0, 0]]
    assert of_space_groups([np.array([166])])[1]["x"] == ["R-3m (166)", "other"]
    many = of_space_groups([np.arange(1, 231)])[1]
    assert (len(many["x"]), sum(many["shares"][0])) == (21, pytest.approx(1))
    assert of_space_groups([empty, empty])[1]["x"] == []


def test_each_element_has_a_place_of_its_own(judged):
    described = judged.evaluation.described
    places = {e["symbol"]: (e["row"], e["column"]) for e in element_table(described, described)}
    assert len(set(places.values())) == len(places) == 103
    expected = {
        "H": (1, 1),
        "He": (1, 18),
        "Hf": (6, 4),
        "La": (8, 3),
        "Lu": (8, 17),
        "Lr": (9, 17),
    }
    assert {symbol: places[symbol] for symbol in expected} == expected
