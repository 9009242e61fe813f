"""Variants of priors compose, share runs in which they do not differ, and end in one table."""

import io
import json
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
FILES = (ROOT / "scripts" / "ablations" / "ldm").glob("*.yaml")
LISTS = {path.stem: yaml.safe_load(path.read_text()) for path in FILES}


@pytest.fixture
def ablation_ldm(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return import_module("ablation_ldm")


def test_every_variant_composes_to_a_config_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("PROJECT_ROOT", str(tmp_path))
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        for name, variants in LISTS.items():
            composed = []
            for variant in variants.values():
                assert set(variant) <= {"vae", "ldm", "sample"}
                vae = ["experiment=mp_20/vae_dng_small", *variant.get("vae", [])]
                ldm = ["experiment=mp_20/ldm_dng_small", *variant.get("ldm", [])]
                changed = [
                    compose("train_vae", vae) if variant.get("vae") else None,
                    compose("train_ldm", ldm) if variant.get("ldm") else None,
                    variant.get("sample"),
                ]
                composed.append(changed)
            assert all(a != b for i, a in enumerate(composed) for b in composed[:i]), name


@pytest.fixture
def started(ablation_ldm, monkeypatch):
    """The runs that are started, which take no time."""
    commands = []

    def run(command, **kwargs):
        commands.append(command)
        folder = next(part for part in command if part.startswith("hydra.run.dir="))
        folder = Path(folder.partition("=")[2])
        folder.mkdir(parents=True)
        figures = {"match_rate": 1.0, "rmse": 0.01, "best_val_loss": 0.5, "epochs": 3, "steps": 9}
        (folder / "summary.json").write_text(json.dumps({**figures, "num_parameters": 7}))

    monkeypatch.setattr("ablations.runs.subprocess.run", run)
    keys = [key for key, _ in ablation_ldm.COLUMNS.values()]
    keys = [
        key for key in keys if not key.startswith("vae") and key not in ("best_val_loss", "epochs")
    ]
    monkeypatch.setattr(ablation_ldm, "_generate", lambda run, how, num: dict.fromkeys(keys, 0.25))
    return commands


def test_runs_that_do_not_differ_are_shared(ablation_ldm, started, tmp_path):
    arguments = ["sampling", "a=b", "--folder", str(tmp_path), "--minutes", "61.5"]
    rows = ablation_ldm.main(arguments)
    assert [row["variant"] for row in rows] == list(LISTS["sampling"])
    vae, ldm = started
    assert "trainer.max_time=00:00:10:00" in vae
    assert "trainer.max_time=00:01:01:30" in ldm
    assert f"vae_ckpt_path={tmp_path}/vae/default/0/checkpoints/best.ckpt" in ldm
    assert all("a=b" in command for command in started)
    assert ablation_ldm.main(arguments) == rows  # nothing is trained twice
    assert len(started) == 2
    ablation_ldm.main([*arguments, "--seeds", "0", "1"])
    assert len(started) == 4


def test_a_vae_for_all(ablation_ldm, started, tmp_path):
    names = ["default", "random"]
    rows = ablation_ldm.main(
        ["path", "--vae", "v.ckpt", "--folder", str(tmp_path), "--variants", *names]
    )
    assert [row["vae_rmse"] for row in rows] == [None, None]
    assert [command[-1] for command in started] == ["vae_ckpt_path=v.ckpt"] * 2


def test_the_table_has_means_and_half_ranges(ablation_ldm):
    keys = [key for key, _ in ablation_ldm.COLUMNS.values()]
    rows = [
        {"variant": name, "seed": seed, **dict.fromkeys(keys, value), "vae_rmse": None}
        for name, seed, value in (("one", 0, 0.25), ("one", 1, 0.75), ("other", 0, 0.5))
    ]
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(ablation_ldm.table(rows, "title"))
    one, other = (
        line for line in console.export_text().splitlines() if "o" in line[:8] and "%" in line
    )
    assert "50.0% ± 25.0%" in one
    assert "50.0%" in other
    assert "±" not in other
