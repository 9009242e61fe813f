"""Every option of a config group works with every option of the others, or is rejected.

Combinations cover all pairs of options, which takes far fewer runs than all combinations. Options
are read from the files in `configs`, so a new one is automatically tried with all others.
"""

import itertools
import logging
import math
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from lightning import Callback

from src.commands.search import SearchError, search
from src.commands.train import train

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
TINY = [
    f"vae_module.{part}.{name}={value}"
    for part in ("encoder", "decoder")
    for name, value in (("d_model", 16), ("nhead", 2), ("num_layers", 1), ("dim_feedforward", 16))
]
OWN_DATA = ("cif_folder", "structures")  # of no known format; the others are folders with splits
UNUSABLE_DATA = ("default", "of_run")  # what others start from; the data of commands

# Those of several processes have tests of their own below, since they start the command anew.
TRAINERS = ["default", "cpu", *(["gpu"] if torch.cuda.is_available() else [])]


def options(group: str) -> list[str]:
    """Names of the files in a group."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


QUICK = {
    "logger": options("logger"),
    "callbacks": [name for name in options("callbacks") if name != "ldm"],
    "debug": ["null", *options("debug")],
    "size": ["null", *options("size")],
    "scheduler": options("scheduler"),
    "vae_module": options("vae_module"),
    "vae_module/optimizer": options("vae_module/optimizer"),
    "trainer": TRAINERS,
}
ALL = {
    **QUICK,
    "data": [name for name in options("data") if name not in UNUSABLE_DATA],
    "hparams_search": ["null", *options("hparams_search")],
}


def pairs_of(combination: Mapping[str, str]) -> set[frozenset[tuple[str, str]]]:
    return {frozenset(pair) for pair in itertools.combinations(combination.items(), 2)}


def covering(groups: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Combinations that contain every pair of options from two groups; the same each time."""
    missing = {
        frozenset([(one, a), (other, b)])
        for one, other in itertools.combinations(groups, 2)
        for a, b in itertools.product(groups[one], groups[other])
    }
    rng, found = random.Random(0), []
    while missing:
        candidates = []
        for _ in range(20):
            # a pair that is missing, and the rest one by one so that each brings most that are
            combination = dict(rng.choice(sorted(map(sorted, missing))))
            for group in sorted(groups, key=lambda _: rng.random()):
                if group not in combination:
                    combination[group] = max(
                        groups[group],
                        key=lambda option: len(missing & pairs_of({**combination, group: option})),
                    )
            candidates.append(combination)
        best = max(candidates, key=lambda combination: len(missing & pairs_of(combination)))
        found.append({group: best[group] for group in groups})
        missing -= pairs_of(best)
    return found


def name(combination: Mapping[str, str]) -> str:
    return "-".join(option for option in combination.values() if option != "null")


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv("PROJECT_ROOT", str(ROOT))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_SILENT", "true")
    # rather than what it says of its environment with each run
    monkeypatch.setattr(logging.getLogger("lightning.pytorch.utilities.rank_zero"), "level", 30)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Eight crystals for training and four for validation, as splits and as files.

    They have few atoms, since Perov-5 accepts no more than five.
    """
    folder = tmp_path_factory.mktemp("data")
    (folder / "splits").mkdir()
    (folder / "files").mkdir()
    table = pd.read_csv(ROOT / "data" / "prototypes" / "train.csv")
    pearson = table["material_id"].str.extract(r"_[a-z][A-Z](\d+)_", expand=False).astype(int)
    table = table[pearson <= 5].head(12)
    table.head(8).to_csv(folder / "splits" / "train.csv", index=False)
    table.tail(4).to_csv(folder / "splits" / "val.csv", index=False)
    for crystal in table.itertuples():
        (folder / "files" / f"{crystal.Index}.cif").write_text(crystal.cif)
    return {"splits": folder / "splits", "files": folder / "files", "cache": folder / "cache"}


def overrides(combination: Mapping[str, str], folders: Mapping[str, Path]) -> list[str]:
    """The options as shipped, and overrides that reduce the run to two small steps."""
    data = combination.get("data", "prototypes")
    chosen = [f"{group}={option}" for group, option in combination.items() if option != "null"]
    in_this_process = ["callbacks.match_rate.num_workers=0"]
    return [
        *chosen, *TINY, "data.batch_size=4", "trainer.max_steps=2", "eval.num_workers=0",
        f"data.data_dir={folders['files' if data in OWN_DATA else 'splits']}",
        f"paths.cache_dir={folders['cache']}",
        *(in_this_process if combination.get("callbacks") != "none" else []),
        *(["hparams_search.n_trials=1"] if "optuna" in combination.values() else []),
    ]  # fmt: skip


def compose_run(folder: Path, given: Sequence[str]):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train_vae", [*given, f"paths.output_dir={folder}"])


def run(folder: Path, combination: Mapping[str, str], folders: Mapping[str, Path]) -> None:
    """Run `src/train_vae.py` in this process."""
    cfg = compose_run(folder, overrides(combination, folders))
    if "hparams_search" in cfg:
        assert search(cfg).best_value == pytest.approx(0.5, abs=0.5)
        (folder,) = folder.glob("trial_*")
    else:
        summary = train(cfg)
        assert summary["steps"] == 2
        assert math.isfinite(summary["lengths_mae"])
    assert (folder / "summary.json").is_file()
    # what a group is chosen for is there
    logged = combination.get("logger", "csv") != "none"
    assert (folder / "metrics.csv").is_file() is logged
    assert (folder / "tensorboard").is_dir() is (combination["logger"] in ("tensorboard", "many"))
    if combination["callbacks"] != "none":
        assert (folder / "checkpoints" / "best.ckpt").is_file()
    if combination["debug"] == "profiler" and combination.get("hparams_search") != "optuna":
        assert (folder / "fit-profile.txt").is_file()


def test_the_pairs_are_covered():
    groups = {"a": ["1", "2", "3"], "b": ["x", "y"], "c": ["x", "z"]}
    combinations = covering(groups)
    for one, other in itertools.combinations(groups, 2):
        for pair in itertools.product(groups[one], groups[other]):
            assert any((c[one], c[other]) == pair for c in combinations)
    assert len(combinations) < 12  # all of them
    assert all(c.keys() == groups.keys() for c in combinations)


def test_every_group_is_covered():
    """Experiments and several processes have tests of their own below."""
    groups = {path.name for path in CONFIGS.iterdir() if path.is_dir()}
    of_ldm = {"ldm_module", "ldm_size", "ldm_debug"}  # see tests/commands/test_train_ldm.py
    assert groups - set(ALL) == {"experiment", "hydra", "paths"} | of_ldm
    assert set(options("trainer")) == {"default", "cpu", "gpu", "ddp", "ddp_sim"}


@pytest.mark.parametrize("combination", covering(QUICK), ids=name)
def test_every_option_goes_with_every_other(combination, folders, tmp_path):
    run(tmp_path / "run", combination, folders)


@pytest.mark.slow
@pytest.mark.parametrize("combination", covering(ALL), ids=name)
def test_every_option_goes_with_all_data_and_searches(combination, folders, tmp_path):
    run(tmp_path / "run", combination, folders)


@pytest.mark.slow
@pytest.mark.parametrize(
    "experiment",
    [str(p.relative_to(CONFIGS / "experiment").with_suffix("")) for p in
     sorted((CONFIGS / "experiment").rglob("*.yaml"))],
)  # fmt: skip
def test_every_experiment_starts(experiment, folders, tmp_path):
    given = overrides({"experiment": experiment}, folders)
    summary = train(compose_run(tmp_path / "run", [*given, "trainer=cpu"]))
    assert summary["steps"] == 2


# One's own logger and callback beside those of the options


class Count(Callback):
    """Counts steps."""

    def __init__(self) -> None:
        self.steps = 0

    def on_train_batch_end(self, *args) -> None:
        self.steps += 1


@pytest.mark.parametrize("logger", options("logger"))
def test_an_own_logger_and_an_own_callback_go_with_all_loggers(logger, folders, tmp_path):
    mine = {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": tmp_path, "name": "mine"}
    given = overrides({"logger": logger}, folders)
    given += ["trainer.log_every_n_steps=1", "+callbacks.mine._target_=lightning.Callback"]
    given += [f"+logger.mine.{key}={value}" for key, value in mine.items()]
    count = Count()
    cfg = compose_run(tmp_path / "run", given)
    train(cfg, callbacks=[count])
    assert count.steps == 2
    logged = pd.read_csv(tmp_path / "mine" / "version_0" / "metrics.csv")
    assert logged["train/loss"].notna().sum() == logged["lr-Muon"].notna().sum() == 2
    assert logged["summary/lengths_mae"].notna().sum() == 1
    assert (tmp_path / "run" / "metrics.csv").is_file() is (logger != "none")


# Several processes, and a GPU where there is none


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("trainer", ["gpu", "ddp"])
def test_a_gpu_that_is_not_there_is_refused(trainer, folders, tmp_path):
    cfg = compose_run(tmp_path / "run", overrides({"trainer": trainer}, folders))
    with pytest.raises(InstantiationException, match="No supported gpu backend found"):
        train(cfg)


def test_a_search_in_several_processes_is_refused(folders, tmp_path):
    given = overrides({"trainer": "ddp_sim", "hparams_search": "optuna"}, folders)
    with pytest.raises(SearchError, match=r"in one process: leave .*trainer\.devices"):
        search(compose_run(tmp_path / "run", given))


WITH_PROCESSES = [
    {group: names[k % len(names)] for group, names in QUICK.items() if group != "trainer"}
    for k in range(max(map(len, QUICK.values())))
]


@pytest.mark.slow
@pytest.mark.parametrize("combination", WITH_PROCESSES, ids=name)
def test_every_option_goes_with_several_processes(combination, folders, tmp_path):
    """Started as a command, because Lightning starts the command again for the second process."""
    given = overrides({**combination, "trainer": "ddp_sim"}, folders)
    done = subprocess.run(
        [sys.executable, ROOT / "src" / "train_vae.py", *given, f"hydra.run.dir={tmp_path}/run"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "summary.json").is_file()
