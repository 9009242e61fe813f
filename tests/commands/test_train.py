"""Runs of the real command, in separate processes."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning import Callback
from omegaconf import OmegaConf

from src.commands.train import train as run_training
from src.utils.checkpoints import CheckpointError
from src.utils.errors import UserError
from src.vae_module import VAEModule

ROOT = Path(__file__).resolve().parents[2]


def train(*overrides: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, str(ROOT / "src" / "train_vae.py"), *overrides],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=550,
    )


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def run_here(folder: Path, cache: Path, *overrides: str) -> dict:
    """A run in this process, in the folder `folder`."""
    given = ["experiment=prototypes/vae_dng", "debug=fast", *overrides]
    given += [f"paths.output_dir={folder}", f"paths.cache_dir={cache}"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return run_training(compose("train_vae", overrides=given))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A short run with everything switched on, started from another folder of the project."""
    folder = tmp_path_factory.mktemp("run")
    done = train(
        "experiment=prototypes/vae_dng", "debug=fast", "trainer.log_every_n_steps=1",
        f"paths.cache_dir={folder}/cache", f"hydra.run.dir={folder}/run", cwd=ROOT / "tests",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "match rate" in done.stdout
    return folder / "run"


def test_the_run_folder_holds_what_a_run_is(run_folder):
    names = {path.name for path in run_folder.iterdir()}
    assert {"config.yaml", "checkpoints", "metrics.csv", "summary.json", "train_vae.log"} <= names
    rows = metrics(run_folder)
    columns = set().union(*rows)
    for name in ("loss", "lengths_loss", "angles_loss", "frac_coords_loss", "kl_loss"):
        assert {f"train/{name}", f"val/{name}"} <= columns
    assert {
        "val/atom_type_accuracy", "val/coords_rmsd", "val/lengths_mae", "val/angles_mae",
        "val/match_rate", "train/crystals_per_second", "lr-Muon",
    } <= columns  # fmt: skip


def test_the_summary_has_the_promised_keys(run_folder):
    summary = json.loads((run_folder / "summary.json").read_text())
    assert {
        "match_rate", "rmse", "match_rate_default", "rmse_default", "atom_type_accuracy",
        "frac_coords_rmse", "lengths_mae", "angles_mae", "crystals_per_second", "time_s",
        "epochs", "steps", "checkpoint",
    } <= set(summary)  # fmt: skip
    assert summary["steps"] == 3
    assert summary["best_epoch"] == 1
    assert {"match_rate", "rmse", "crmse"} <= set(summary["training_split"])
    assert summary["epochs"] == 1
    assert summary["crystals_per_second"] > 0
    best = Path(summary["checkpoint"])
    assert best == run_folder / "checkpoints" / "best.ckpt"
    assert VAEModule.load_from_checkpoint(best).encoder.d_model == 64


def test_checkpoints_are_plain(run_folder):
    for name in ("best.ckpt", "last.ckpt"):
        content = torch.load(run_folder / "checkpoints" / name, weights_only=True)
        assert content["hyper_parameters"]["decoder"]["d_model"] == 64


@pytest.mark.parametrize(
    "field", ["ckpt_path={}", "init_from={} vae_module.encoder.d_model=16 data.cell=primitive"]
)
def test_a_run_can_start_from_weights(run_folder, tmp_path, field):
    """With `init_from`, the networks and the cell are those of the checkpoint as well."""
    best = run_folder / "checkpoints" / "best.ckpt"
    more = [*field.format(best).split(), "trainer.max_epochs=0", "callbacks=none"]
    new = run_here(tmp_path, run_folder.parent / "cache", *more)
    old = json.loads((run_folder / "summary.json").read_text())
    assert new["lengths_mae"] == pytest.approx(old["lengths_mae"], rel=1e-5)
    assert new["before_training"]["crmse"] == pytest.approx(new["crmse"])
    lr = OmegaConf.load(tmp_path / "config.yaml").vae_module.optimizer.lr
    assert lr == (5e-4 if "init_from" in field else 5e-3)


@pytest.mark.parametrize("field", ["ckpt_path", "resume_from"])
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["vae_module.latent_dim=3"],
            r"\(checkpoint / here\): latent_dim 8 / 3\. .* quant_conv.weight is ",
        ),
        (
            ["vae_module.encoder.num_layers=3", "vae_module.decoder.dim_feedforward=64"],
            r"\(checkpoint / here\): encoder.num_layers 2 / 3, decoder.dim_feedforward 128 / 64\."
            r".*layers.2\S+ is missing \(and \d+ more\)",
        ),
        (["vae_module.quant_bias=false"], r"here\): quant_bias True / False\..*is unexpected"),
    ],
)
def test_weights_of_another_model_are_refused(run_folder, tmp_path, field, overrides, message):
    """Before any training, with an error that names the settings that differ."""
    last = run_folder / "checkpoints" / "last.ckpt"
    with pytest.raises(CheckpointError, match=rf"last.ckpt has the weights of a diff.*{message}"):
        run_here(tmp_path, run_folder.parent / "cache", f"{field}={last}", *overrides)
    assert not (tmp_path / "metrics.csv").exists()


def test_other_settings_of_the_same_weights_are_named(run_folder, tmp_path, caplog):
    last = run_folder / "checkpoints" / "last.ckpt"
    more = ["vae_module.encoder.nhead=2", "trainer.max_epochs=0", "callbacks=none"]
    with caplog.at_level("WARNING", "src"):
        run_here(tmp_path, run_folder.parent / "cache", f"ckpt_path={last}", *more)
    assert (
        "last.ckpt was trained with other settings (checkpoint / here): encoder.nhead 4 / 2"
        in caplog.text
    )


def test_a_run_goes_on_with_the_optimizer_that_it_began_with(run_folder, tmp_path):
    last = run_folder / "checkpoints" / "last.ckpt"
    more = [f"resume_from={last}", "vae_module/optimizer=adamw"]
    with pytest.raises(CheckpointError, match=r"begun with src.utils.muon.Muon, .* torch.optim"):
        run_here(tmp_path, run_folder.parent / "cache", *more)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed must be at least 0"),
        ("eval.num_crystals=0", "eval.num_crystals must be at least 1"),
        ("eval.timeout=0", "eval: timeout must be a positive number"),
        ("eval.num_workers=-1", "eval: num_workers must be at least 0"),
    ],
)
def test_what_would_end_a_run_after_its_training_does_so_before(tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        run_here(tmp_path, tmp_path / "cache", override)
    assert not (tmp_path / "cache").exists()  # not even the data were read


class Threads(Callback):
    """Records the number of threads during the training steps."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def on_train_batch_start(self, *args) -> None:
        self.seen.add(torch.get_num_threads())


@pytest.mark.parametrize(("override", "expected"), [("size=small", 2), ("num_threads=null", 3)])
def test_a_run_has_the_threads_of_its_config(run_folder, tmp_path, override, expected):
    threads, before = Threads(), torch.get_num_threads()
    given = ["experiment=prototypes/vae_dng", "debug=fast", override, "callbacks=none"]
    given += [f"paths.output_dir={tmp_path}", f"paths.cache_dir={run_folder.parent}/cache"]
    sizes = ("d_model=16", "num_layers=1", "dim_feedforward=16")
    given += [f"vae_module.{part}.{size}" for part in ("encoder", "decoder") for size in sizes]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train_vae", overrides=given)
    try:
        torch.set_num_threads(3)
        run_training(cfg, callbacks=[threads])
        assert threads.seen == {expected}
        assert torch.get_num_threads() == 3  # for the next run of this process
    finally:
        torch.set_num_threads(before)


def test_a_run_that_logs_no_steps(run_folder, tmp_path):
    more = ["trainer.log_every_n_steps=0", "callbacks.match_rate.every_n_epochs=0"]
    assert run_here(tmp_path, run_folder.parent / "cache", *more)["steps"] == 3
    columns = set().union(*metrics(tmp_path))
    assert "val/loss" in columns
    assert not [name for name in columns if name.startswith(("train/", "lr-"))]


@pytest.mark.slow
def test_a_resumed_run_takes_the_steps_of_an_uninterrupted_one(tmp_path):
    common = [
        "experiment=prototypes/vae_dng", "debug=fast", "scheduler=constant",
        "callbacks.match_rate.every_n_epochs=0", f"paths.cache_dir={tmp_path}/cache",
    ]  # fmt: skip
    for folder, *overrides in (
        ("whole", "trainer.max_epochs=4"),
        ("parts", "trainer.max_epochs=2"),
        ("parts", "trainer.max_epochs=4", "resume_from=last"),
    ):
        done = train(*common, f"hydra.run.dir={tmp_path / folder}", *overrides)
        assert done.returncode == 0, done.stderr
    whole, parts = (
        torch.load(tmp_path / folder / "checkpoints" / "last.ckpt", weights_only=True)
        for folder in ("whole", "parts")
    )
    assert whole["global_step"] == parts["global_step"] == 12
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, parts["state_dict"][name]), name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["vae_module.encoder.d_modle=64"],
            "no setting d_modle in vae_module.encoder; did you mean vae_module.encoder.d_model",
        ),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (["vae_module.encoder.activation=tanh"], "activation must be one of"),
                (
                    ["experiment=mp_21/vae_dng"],
                    "there is no experiment=mp_21/vae_dng: choose mp_20/vae_dng",
                ),
                (["vae_module.encoder.nhead=7"], "not a multiple of nhead=7"),
                (["data.data_dir=nowhere"], "There is no folder nowhere"),
                (["resume_from=nowhere.ckpt"], "there is no checkpoint nowhere.ckpt"),
                (["ckpt_path=README.md"], "README.md"),
            )
        ),
    ],
)
def test_what_cannot_work_is_said_in_one_message(overrides, message, tmp_path):
    done = train("debug=fast", f"hydra.run.dir={tmp_path}", *overrides)
    assert done.returncode == 1
    said = " ".join((done.stdout + done.stderr).split())
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["dng", "csp"])
def test_16_real_crystals_are_learned_by_heart(mode, shared_data, tmp_path):
    """Train, validation and the table are the same 16 crystals."""
    import pandas as pd

    crystals = pd.read_csv(shared_data / "mp_20" / "train.csv.gz").head(16)
    for split in ("train", "val"):
        crystals.to_csv(tmp_path / f"{split}.csv", index=False)
    done = train(
        f"experiment=mp_20/vae_{mode}", "debug=overfit", f"data.data_dir={tmp_path}",
        f"hydra.run.dir={tmp_path}/run", f"paths.cache_dir={tmp_path}/cache",
        "vae_module.encoder.d_model=128", "vae_module.decoder.d_model=128",
        "vae_module.encoder.num_layers=3", "vae_module.decoder.num_layers=3",
        "vae_module.encoder.dim_feedforward=512", "vae_module.decoder.dim_feedforward=512",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["match_rate"] == 1.0
    assert summary["rmse"] < 0.1
