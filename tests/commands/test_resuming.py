"""What may change when a run continues does change; what may not is refused by name."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from src.commands.train import train
from src.utils.checkpoints import CheckpointError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A few crystals of each split."""
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        table = pd.read_csv(ROOT / "data" / "prototypes" / f"{split}.csv").head(24)
        table.to_csv(folder / f"{split}.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run(folder: Path, data: Path, cache: Path, *overrides: str) -> dict:
    given = [
        "debug=fast", f"data.data_dir={data}", "data.batch_size=8",
        "callbacks.match_rate.every_n_epochs=0", "callbacks.pictures.every_n_epochs=0",
        f"paths.output_dir={folder}", f"paths.cache_dir={cache}", *overrides,
    ]  # fmt: skip
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return train(compose("train_vae", overrides=given))


@pytest.fixture(scope="module")
def begun(tmp_path_factory, data, cache) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    run(folder, data, cache)
    return folder


@pytest.fixture
def folder(begun, tmp_path) -> Path:
    """A copy of the run, to continue."""
    shutil.copytree(begun, tmp_path / "run")
    return tmp_path / "run"


def test_changed_settings_act_and_are_logged(folder, data, cache, caplog):
    changed = ["vae_module.optimizer.lr=1e-4", "vae_module.optimizer.weight_decay=0.5"]
    changed += ["trainer.max_epochs=2", "vae_module.loss_weights.kl=1e-3"]
    with caplog.at_level("INFO", "src"):
        summary = run(folder, data, cache, "resume_from=last", *changed)
    assert summary["steps"] == 6
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    for group in state["optimizer_states"][0]["param_groups"]:
        assert (group["initial_lr"], group["weight_decay"]) == (1e-4, 0.5)
        assert 0 < group["lr"] <= 1e-4
    assert state["hyper_parameters"]["loss_weights"]["kl"] == 1e-3
    for words in ("optimizer.lr 0.005 / 0.0001", "optimizer.weight_decay 0.01 / 0.5", "max_epochs"):
        assert words in caplog.text
    assert OmegaConf.load(folder / "config.yaml").vae_module.optimizer.lr == 1e-4


@pytest.mark.parametrize(
    ("override", "named"),
    [
        (
            "seed=1 data.batch_size=4 data.min_distance=0.4 vae_module.encoder.nhead=2",
            r"vae_module.encoder.nhead 4 / 2, data.min_distance 0.5 / 0.4, seed 0 / 1, "
            r"data.batch_size times the number of processes 8 / 4\. Restore them",
        ),
        pytest.param("vae_module.latent_dim=4", r"latent_dim 8 / 4", marks=pytest.mark.slow),
        pytest.param(
            "vae_module.optimizer.matrices=layers",
            r"begun with matrices=transformer",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_cannot_change_is_refused_by_name(folder, data, cache, override, named):
    before = (folder / "config.yaml").read_text()
    with pytest.raises(CheckpointError, match=named):
        run(folder, data, cache, "resume_from=last", "trainer.max_epochs=2", *override.split())
    assert (folder / "config.yaml").read_text() == before


@pytest.mark.slow
def test_other_crystals_are_refused_and_a_moved_folder_is_not(folder, data, cache, tmp_path):
    more = ("resume_from=last", "trainer.max_epochs=2")
    moved = shutil.copytree(data, tmp_path / "moved")
    changed = shutil.copytree(data, tmp_path / "changed")
    table = pd.read_csv(changed / "val.csv")
    table["material_id"] = table["material_id"] + "_new"
    table.to_csv(changed / "val.csv", index=False)
    with pytest.raises(CheckpointError, match=r"split val is another one: 24 / 24 crystals"):
        run(folder, changed, cache, *more)
    assert run(folder, moved, cache, *more)["steps"] == 6


@pytest.mark.slow
def test_settings_of_a_finished_run_stay(folder, data, cache):
    before = (folder / "config.yaml").read_text()
    run(folder, data, cache, "resume_from=last", "vae_module.optimizer.lr=1e-4")
    assert (folder / "config.yaml").read_text() == before


@pytest.mark.slow
def test_a_run_with_averaged_weights_continues_only_with_them(tmp_path, data, cache):
    run(tmp_path, data, cache, "callbacks=ema")
    with pytest.raises(CheckpointError, match=r"callbacks\.ema set / not set"):
        run(tmp_path, data, cache, "resume_from=last", "trainer.max_epochs=2")
