"""Lists of variants compose, each run is made once, and the table shows their results."""

import importlib.util
import io
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ablation(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    spec = importlib.util.spec_from_file_location("ablation", ROOT / "scripts" / "ablation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_variant_composes_to_a_config_of_its_own(ablation, monkeypatch, tmp_path):
    monkeypatch.setenv("PROJECT_ROOT", str(tmp_path))
    for name, variants in ablation.read_lists().items():
        assert len(variants) > 1, name
        composed = []
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            for overrides in variants.values():
                cfg = compose("train_vae", ["experiment=prototypes/vae_dng", *overrides])
                composed.append((cfg.data, cfg.vae_module, cfg.callbacks, cfg.trainer))
        assert all(a != b for i, a in enumerate(composed) for b in composed[:i]), name


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (["--steps", "30"], ["trainer.max_steps=30", "trainer.max_epochs=-1"]),
        (["--epochs", "2"], ["trainer.max_epochs=2"]),
        (["--minutes", "61.5"], ["trainer.max_time=00:01:01:30", "trainer.max_epochs=-1"]),
    ],
)
def test_a_budget_reaches_every_run(ablation, monkeypatch, tmp_path, budget, expected):
    started = []
    monkeypatch.setattr(ablation, "train", lambda _, *run: started.append(run[:2]))
    figures = dict.fromkeys((key for key, _ in ablation.COLUMNS.values()), 0.5)
    monkeypatch.setattr(ablation, "evaluate", lambda *_: figures)
    arguments = ["latent_dim", "a=b", *budget, "--seeds", "3", "4", "--folder", str(tmp_path)]
    rows = ablation.main(arguments)
    names = list(ablation.read_lists()["latent_dim"])
    assert [row["variant"] for row in rows] == 2 * names  # seeds are the outer loop
    assert [run for run, _ in started] == [tmp_path / n / s for s in ("3", "4") for n in names]
    for _, overrides in started:
        assert set(expected) <= set(overrides)
        assert "a=b" in overrides


def test_the_table_has_means_and_half_ranges(ablation):
    keys = [key for key, _ in ablation.COLUMNS.values()]
    rows = [
        {"variant": name, "seed": seed, **dict.fromkeys(keys, value)}
        for name, seed, value in (("one", 0, 0.25), ("one", 1, 0.75), ("other", 0, 0.5))
    ]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(ablation.table(rows, "title"))
    one, other = (
        line for line in console.export_text().splitlines() if "one" in line or "other" in line
    )
    assert "50.00% ± 25.00%" in one
    assert "50.00%" in other
    assert "±" not in other


def test_the_picture_has_every_variant_once(ablation, monkeypatch, tmp_path):
    keys = ("crmse", "match_rate_noise_0.1", "match_rate_noise_0.2")
    rows = [
        {"variant": name, "seed": seed, **dict.fromkeys(keys, value)}
        for name, seed, value in (("one", 0, 0.25), ("one", 1, 0.75), ("other", 0, 0.5))
    ]
    drawn = []
    savefig = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: drawn.append(self) or savefig(self, *a, **k)
    )
    ablation.draw(rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "other"]
    one, other = figure.axes[1].get_lines()
    assert (list(one.get_xdata()), list(one.get_ydata())) == ([0.25, 0.75], [25, 75])
    assert (list(other.get_xdata()), list(other.get_ydata())) == ([0.5], [50])


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_run_is_made_once(ablation, tmp_path):
    tiny = [
        f"vae_module.{part}.{size}"
        for part in ("encoder", "decoder")
        for size in ("d_model=16", "nhead=2", "num_layers=1", "dim_feedforward=16")
    ]
    arguments = ["smoothness", *tiny, "--steps", "3", "--crystals", "5", "--folder", str(tmp_path)]
    rows = ablation.main([*arguments, "--variants", "kl_1e-6", "kl_1e-2"])
    assert [row["steps"] for row in rows] == [3, 3]
    assert rows[0]["kl"] != rows[1]["kl"]
    files = times(tmp_path)
    assert ablation.main([*arguments, "--variants", "kl_1e-6", "kl_1e-2"]) == rows
    assert files == times(tmp_path)
