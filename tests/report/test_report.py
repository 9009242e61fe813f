"""Check the files of a report and their contents."""

import json
import re
import sys
import types
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from src.data.readers import DataError
from src.report import write_report, write_samples_report
from src.report.figures import by_num_atoms_figure, noise_figure, training_curves
from src.report.files import EvaluationFiles
from src.report.frame import embed_json
from src.report.maps import plane_maps, principal_components
from src.report.page import choose_crystals

WORST_FIRST = [9, 5, 2, 13, 12, 11, 10, 8, 7, 6, 4, 3, 1, 0]
HOSTILE = (
    "</script><script>alert(1)</script><img src=http://example.com/x onerror='alert(2)'>$\\frac{"
)


class Page(HTMLParser):
    """Collects the elements of a page with their attributes, and the text of each script."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.scripts = [], []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        self.data = json.loads(self.scripts[1])

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.lasttag == "script" and self.elements[-1][0] == "script":
            self.scripts[-1] += data


@pytest.fixture
def page_only(monkeypatch):
    """Skip the 5 MB of plotly and the figures, which take most of the time."""
    monkeypatch.setattr("src.report.page.get_plotlyjs", lambda: "/* plotly */")
    monkeypatch.setattr("src.report.page._figures", lambda *_: [])


def test_a_complete_report(make_folder):
    folder = make_folder()
    write_report(folder)
    figures = sorted(path.stem for path in (folder / "figures").iterdir())
    assert figures == ["latents", "match_by_num_atoms", "noise", "training", "worst"]
    for path in (folder / "figures").iterdir():
        with Image.open(path) as picture:
            assert len(picture.convert("RGB").getcolors(2**24)) > 20, path
    page = Page(folder / "report.html")
    assert "Reconstruction of 14 crystals (test)" in page.html
    assert len(page.scripts) == 5
    assert "plotly.js" in page.scripts[0][:200]
    data = page.data
    assert data["crystals"]["id"] == [f"id-{k}" for k in WORST_FIRST]
    assert data["crystals"]["rms"][:4] == [None, None, None, 0.13]
    assert data["crystals"]["matched"] == [False] * 3 + [True] * 11
    assert data["metrics"]["rmse_default"] is None
    assert data["metrics"]["match_rate"] == pytest.approx(11 / 14, abs=1e-5)
    assert [m["settings"] for m in data["matchers"]] == [
        "stol 0.5, ltol 0.3, angle 10°",
        "stol 0.3, ltol 0.2, angle 5°",
    ]
    assert data["training"]["val/match_rate"] == [[9, 19], [0.25, 0.75]]
    assert data["maps"][0]["name"] == "PCA"
    assert np.shape(data["maps"][0]["points"]) == (2, 14)


@pytest.mark.usefixtures("page_only")
def test_nothing_is_loaded_from_elsewhere(make_folder):
    folder = make_folder()
    write_report(folder)
    page = Page(folder / "report.html")
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert not {"src", "href", "data", "action"} & set(attributes)
    (policy,) = (a["content"] for _, a in page.elements if "http-equiv" in a)
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert "url(" not in page.html
    assert "@import" not in page.html


@pytest.mark.usefixtures("page_only")
def test_the_crystals_on_the_page(make_folder, crystals):
    folder = make_folder()
    write_report(folder)
    data = Page(folder / "report.html").data
    assert data["pairs"][1][1] is None  # the invalid reconstruction
    original, rebuilt = data["pairs"][0]
    assert set(original["numbers"]) == set(crystals[9].numbers.tolist())
    assert len(original["numbers"]) == len(original["positions"]) >= len(crystals[9])
    assert len(rebuilt["numbers"]) == len(original["numbers"])
    shift = np.subtract(original["positions"], rebuilt["positions"])
    assert 0 < np.abs(shift).max() < 0.3
    volume = np.linalg.det(np.array(original["cell"]))
    assert volume == pytest.approx(crystals[9].cell.volume, rel=1e-2)
    used = {number for pair in data["pairs"] for c in pair if c for number in c["numbers"]}
    assert used <= {int(number) for number in data["elements"]}
    assert all(len(e["color"]) == 3 and e["radius"] > 0.1 for e in data["elements"].values())


def test_missing_files_and_metrics_are_left_out(make_folder, monkeypatch):
    monkeypatch.setattr("src.report.page.get_plotlyjs", lambda: "/* plotly */")
    folder = make_folder(blocks=False)
    write_report(folder)
    assert [path.name for path in (folder / "figures").iterdir()] == ["worst.png"]
    page = Page(folder / "report.html")
    assert page.data["maps"] == []
    assert page.data["training"] == {}
    assert "crystal_system" not in page.data["crystals"]


@pytest.mark.usefixtures("page_only")
def test_hostile_text_is_escaped(make_folder):
    folder = make_folder(ids={9: HOSTILE})
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics.update(split=HOSTILE, checkpoint=HOSTILE)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    write_report(folder)
    page = Page(folder / "report.html")
    assert len(page.scripts) == 5
    assert not [tag for tag, _ in page.elements if tag == "img"]
    assert "alert(1)</script>" not in page.html
    assert page.data["crystals"]["id"][0] == HOSTILE
    assert page.data["metrics"]["checkpoint"] == HOSTILE


@pytest.mark.usefixtures("page_only")
def test_more_crystals_than_fit_on_the_page(make_folder):
    folder = make_folder()
    write_report(folder, max_crystals=6)
    data = Page(folder / "report.html").data
    assert data["total"] == 14
    assert len(data["pairs"]) == len(data["maps"][0]["points"][0]) == 6
    assert data["crystals"]["id"][:3] == ["id-9", "id-5", "id-2"]


@pytest.mark.usefixtures("page_only")
def test_a_report_can_be_rewritten(make_folder):
    folder = make_folder()
    pages = []
    for _ in range(2):
        write_report(folder)
        pages.append((folder / "report.html").read_bytes())
    assert pages[0] == pages[1]
    assert not list(folder.rglob("*partial*"))


def test_the_choice_of_crystals():
    assert choose_crystals(5, 5, seed=0).tolist() == [0, 1, 2, 3, 4]
    chosen = choose_crystals(1000, 11, seed=0)
    assert len(chosen) == len(set(chosen.tolist())) == 11
    assert chosen[:5].tolist() == [0, 1, 2, 3, 4]
    assert (np.diff(chosen) > 0).all()
    assert chosen.tolist() == choose_crystals(1000, 11, seed=0).tolist()
    assert chosen.tolist() != choose_crystals(1000, 11, seed=1).tolist()


def test_embedded_json():
    content = {"<!--": ["</script>", "a&b", "\u2028", 1.5, None]}
    text = embed_json(content)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == content
    with pytest.raises(ValueError, match="JSON compliant"):
        embed_json([float("nan")])


# The folder


def test_derived_columns(make_folder, crystals):
    evaluation = EvaluationFiles.read(make_folder())
    systems = evaluation.crystals.set_index("id")["crystal_system"]
    assert [systems[f"id-{k}"] for k in range(14)] == [
        "triclinic", "triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal",
        "hexagonal", "cubic", "cubic", "cubic", "tetragonal", "orthorhombic", "monoclinic",
        "unknown",
    ]  # fmt: skip
    for row, atoms in zip(evaluation.crystals.itertuples(), evaluation.originals, strict=True):
        symbols = list(atoms.symbols)
        assert row.heaviest_element == symbols[atoms.numbers.argmax()]
        assert symbols.count(row.most_common_element) == max(map(symbols.count, symbols))
    assert [len(atoms) for atoms in evaluation.originals] == evaluation.crystals.num_atoms.tolist()
    assert [str(atoms.info["id"]) for atoms in evaluation.reconstructions] == list(
        evaluation.crystals["id"]
    )


def test_a_formula_that_looks_like_a_missing_value(make_folder):
    """NaN is sodium nitride."""
    folder = make_folder()
    table = pd.read_csv(folder / "per_crystal.csv")
    table["formula"] = "NaN"
    table["id"] = "007"
    table.to_csv(folder / "per_crystal.csv", index=False)
    crystals = EvaluationFiles.read(folder).crystals
    assert set(crystals["formula"]) == {"NaN"}
    assert set(crystals["id"]) == {"007"}


def drop_a_crystal(folder):
    lines = (folder / "original.extxyz").read_text().splitlines(keepends=True)
    (folder / "original.extxyz").write_text("".join(lines[int(lines[0]) + 2 :]))


def cut_off(folder):
    text = (folder / "reconstruction.extxyz").read_text()
    (folder / "reconstruction.extxyz").write_text(text[: len(text) // 2].rpartition("\n")[0])


def drop_a_column(folder):
    table = pd.read_csv(folder / "per_crystal.csv").drop(columns="rms")
    table.to_csv(folder / "per_crystal.csv", index=False)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "metrics.json").unlink(), "metrics.json does not exist: is this an eval"),
        (lambda f: (f / "metrics.json").write_text("{"), "metrics.json cannot be read"),
        (lambda f: (f / "original.extxyz").unlink(), "original.extxyz does not exist"),
        (lambda f: (f / "original.extxyz").write_text(""), "original.extxyz"),
        (lambda f: (f / "latents.safetensors").write_bytes(b"x" * 50), "latents.safetensors can"),
        (drop_a_crystal, "original.extxyz has 13 crystals but per_crystal.csv has 14"),
        (cut_off, "reconstruction.extxyz"),
        (drop_a_column, "per_crystal.csv lacks the columns rms"),
    ],
)
def test_incomplete_folders_are_refused(make_folder, spoil, message):
    folder = make_folder()
    spoil(folder)
    with pytest.raises(DataError, match=message):
        write_report(folder)
    assert not (folder / "report.html").exists()


# Maps and figures


def test_principal_components():
    along = np.array([1.0, 2.0, 2.0]) / 3
    across = np.array([2.0, 1.0, -2.0]) / 3
    a, b = np.array([-2.0, 0.0, 2.0, 0.0]), np.array([0.0, 1.0, 0.0, -1.0])
    plane = principal_components(5 + a[:, None] * along + b[:, None] * across)
    assert plane.points[:, 0] == pytest.approx(a)
    assert np.abs(plane.points[:, 1]) == pytest.approx(np.abs(b))
    assert plane.axes == ("PC 1 (80% of variance)", "PC 2 (20%)")


def test_principal_components_of_degenerate_points():
    one = principal_components(np.array([[1.0], [3.0]]))
    assert one.points.tolist() == [[-1, 0], [1, 0]]
    same = principal_components(np.ones((3, 4)))
    assert same.points == pytest.approx(np.zeros((3, 2)))
    assert same.axes[0] == "PC 1 (0% of variance)"


def test_umap_is_used_if_installed(monkeypatch):
    class UMAP:
        def __init__(self, n_neighbors, random_state, n_jobs):
            assert (n_neighbors, random_state) == (15, 3)

        def fit_transform(self, x):
            return x[:, :2] + 1

    x = np.random.default_rng(0).normal(size=(40, 5))
    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=UMAP))
    _, plane = plane_maps(x, seed=3)
    assert plane.name == "UMAP"
    assert plane.points == pytest.approx(x[:, :2] + 1)
    monkeypatch.setitem(sys.modules, "umap", None)
    assert [plane.name for plane in plane_maps(x)] == ["PCA"]
    assert plane_maps(x * np.nan) == []


def test_bars_and_curves():
    rows = [
        {"num_atoms": 2, "crystals": 7, "match_rate": 0.5, "match_rate_default": None},
        {"num_atoms": 20, "crystals": 3, "match_rate": 1.0, "match_rate_default": 0.25},
    ]
    top, bottom = by_num_atoms_figure(rows).axes
    assert [bar.get_height() for bar in top.patches] == pytest.approx(
        [50, 100, np.nan, 25], nan_ok=True
    )
    assert [bar.get_height() for bar in bottom.patches] == [7, 3]
    noise = {
        "levels": [0, 1], "match_rate": [0.9, 0.1], "area": 0.5, "match_rate_default": None,
        "match_rate_unreduced": [0.9, 0.3], "area_unreduced": 0.6,
    }  # fmt: skip
    figure = noise_figure(noise)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert legend.get_window_extent().x1 <= figure.bbox.x1  # it fits in the figure
    (ax,) = figure.axes
    line, unreduced = ax.lines
    assert line.get_ydata() == pytest.approx([90, 10])
    assert line.get_label() == "stol 0.5, ltol 0.3, angle 10°; area 0.500"
    assert unreduced.get_ydata() == pytest.approx([90, 30])
    label = "stol 0.5, ltol 0.3, angle 10°, no primitive reduction; area 0.600"
    assert unreduced.get_label() == label


def test_training_curves():
    table = pd.DataFrame({"step": [1, 2, 3], "val/loss": [2.0, np.nan, np.inf], "x": 0})
    ((name, (steps, values)),) = training_curves(table).items()
    assert (name, steps.tolist(), values.tolist()) == ("val/loss", [1], [2])
    assert training_curves(pd.DataFrame({"val/loss": [1.0]})) == {}


def test_the_page_of_samples(make_samples):
    folder, known = make_samples()
    write_samples_report(folder, known, HOSTILE)
    text = (folder / "report.html").read_text()
    assert HOSTILE not in text
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', text)[1])
    assert data["about"] == [["checkpoint", "ldm.ckpt"], ["seed", "0"]]
    assert data["known"]["count"] == 3
    samples = data["samples"]
    assert [s["formula"] for s in samples] == ["NaCl"] * 14
    assert [samples[k]["known"]["id"] for k in range(3)] == ["known-0", "known-1", "known-2"]
    assert samples[0]["known"]["rms"] == pytest.approx(0, abs=1e-3)
    assert samples[2]["known"]["rms"] is None
    assert all("known" not in sample for sample in samples[3:])
    assert samples[5]["crystal"] is None
    assert re.fullmatch(r"\S+ \(\d+\)", samples[0]["space_group"])

    rows = json.loads((folder / "samples.json").read_text())
    rows["samples"][5]["valid_structure"] = True  # but left out of the files
    (folder / "samples.json").write_text(json.dumps(rows))
    write_samples_report(folder, known)

    write_samples_report(folder, max_crystals=4)
    data = json.loads(re.search(r'json">(.*?)</script>', (folder / "report.html").read_text())[1])
    assert (data["known"], data["total"], len(data["samples"])) == (None, 14, 4)
