"""Searches: the space, the study and its trials, and one that is killed and goes on."""

import importlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import optuna
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from pymatgen.core import Lattice, Structure

from src.commands import search as module
from src.commands.search import SearchError, direction_of, parse_space, search
from src.commands.sweep import read_jobs
from src.data.schema import CrystalBatch
from src.metrics.reconstruction.errors import ReconstructionErrors
from src.utils.errors import UserError
from src.utils.output import OutputError
from src.vae_module import VAEModule

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "trainer=cpu", "logger=none", "callbacks=none",
    "vae_module.encoder.d_model=16", "vae_module.encoder.nhead=2",
    "vae_module.encoder.num_layers=1", "vae_module.encoder.dim_feedforward=16",
    "vae_module.decoder.d_model=16", "vae_module.decoder.nhead=2",
    "vae_module.decoder.num_layers=1", "vae_module.decoder.dim_feedforward=16",
    "eval.num_workers=0", "eval.num_crystals=4",
]  # fmt: skip
SALT = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
SPACE = (
    "{vae_module.optimizer.lr: {low: 1e-4, high: 1e-2, log: true}, "
    "vae_module.latent_dim: {low: 2, high: 64, also: [vae_module.encoder.num_harmonics]}}"
)


def instead(key: str, value: str) -> list[str]:
    """Overrides that replace a dictionary; KEY=VALUE alone would only add to it."""
    return [f"~{key}", f"+{key}={value}"]


def stop_above(bound: float) -> str:
    """A pruner."""
    return f"{{_target_: optuna.pruners.ThresholdPruner, upper: {bound}}}"


@pytest.fixture
def make_config(tmp_path, monkeypatch):
    monkeypatch.setenv("PROJECT_ROOT", str(ROOT))

    def make(*overrides: str, space: str | None = SPACE):
        """The config, with `space` in the place of the shipped one, if it is not None."""
        given = [f"paths.output_dir={tmp_path / 'search'}", *overrides]
        if space is not None:
            given += instead("hparams_search.space", space)
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            return compose("search_vae", given)

    return make


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "search"


@pytest.fixture(autouse=True)
def no_collection(monkeypatch):
    """Of garbage, which takes longer than all else here."""
    monkeypatch.setattr(module, "gc", SimpleNamespace(collect=lambda: None))


@pytest.fixture
def fake_train(monkeypatch):
    """A training run that takes no time: its crmse is the latent's width over 100."""
    configs = []

    def train(cfg, callbacks=()):
        configs.append(cfg)
        summary = {"crmse": cfg.vae_module.latent_dim / 100, "epochs": 3}
        Path(cfg.paths.output_dir, "summary.json").write_text(json.dumps(summary))
        return summary

    monkeypatch.setattr(module, "train", train)
    return configs


# The search space


def test_the_shipped_space(make_config):
    assert parse_space(make_config(space=None)) == {
        "vae_module.optimizer.lr": FloatDistribution(5e-4, 2e-2, log=True),
        "vae_module.loss_weights.kl": FloatDistribution(1e-6, 1e-3, log=True),
        "vae_module.latent_dim": IntDistribution(2, 16, step=2),
        "vae_module.encoder.num_layers": IntDistribution(2, 8),
    }


@pytest.mark.parametrize(
    ("key", "options", "expected"),
    [
        ("data.batch_size", "{low: 1, high: 64, log: true}", IntDistribution(1, 64, log=True)),
        ("vae_module.mask_ratio", "{low: 0, high: 1}", FloatDistribution(0, 1)),
        ("vae_module.rotate", "{choices: [true, false]}", CategoricalDistribution([True, False])),
    ],
)
def test_a_space_is_read(make_config, key, options, expected):
    assert parse_space(make_config(space=f"{{{key}: {options}}}")) == {key: expected}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("{}", "names nothing"),
        ("{vae_module.optimiser.lr: {low: 0, high: 1}}", "optimiser.lr is not in the config"),
        ("{seed: {low: 0, high: 1, also: [seeds]}}", "seeds is not in the config"),
        ("{seed: {low: 0}}", "space.seed is .*it needs low and high"),
        ("{seed: {low: 5, high: 1}}", "space.seed"),
        ("{seed: {low: 0, high: 1, stepp: 2}}", "stepp"),
        ("{seed: {choices: [[1, 2], [3, 4]]}}", "choices are numbers, words"),
        ("{seed: {choices: [1], low: 1, high: 2}}", "space.seed"),
    ],
)
def test_a_space_that_does_not_fit_is_named(make_config, space, message):
    with pytest.raises(SearchError, match=message):
        parse_space(make_config(space=space))


@pytest.mark.parametrize("override", ["resume_from=last", "trainer=ddp", "trainer.num_nodes=2"])
def test_a_trial_is_one_process_from_its_start(make_config, override):
    with pytest.raises(SearchError, match="from its start, in one process"):
        search(make_config(override))


# The study


def test_a_search_leaves_its_trials_a_table_and_the_best(make_config, fake_train, folder):
    study = search(make_config("hparams_search.n_trials=12"))
    widths = [cfg.vae_module.latent_dim for cfg in fake_train]
    assert [trial.value for trial in study.trials] == [width / 100 for width in widths]
    assert [cfg.vae_module.encoder.num_harmonics for cfg in fake_train] == widths
    assert fake_train[7].callbacks.checkpoint.dirpath == str(folder / "trial_007" / "checkpoints")
    jobs = read_jobs(folder)
    assert [job.name for job in jobs][::11] == ["trial_000", "trial_011"]
    assert [job.overrides["vae_module.latent_dim"] for job in jobs] == widths
    assert {"sweep.csv", "sweep.png", "best.yaml", "study.db"} <= {p.name for p in folder.iterdir()}
    # what the best one was given is what Hydra takes
    best = list(OmegaConf.load(folder / "best.yaml"))
    assert len(OverridesParser.create().parse_overrides(best)) == 3
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train_vae", best)
    assert cfg.vae_module.latent_dim == cfg.vae_module.encoder.num_harmonics == min(widths)
    assert cfg.vae_module.optimizer.lr == study.best_params["vae_module.optimizer.lr"]


def test_a_search_goes_on_to_the_number_of_trials(make_config, fake_train):
    search(make_config("hparams_search.n_trials=3"))
    study = search(make_config("hparams_search.n_trials=5"))
    assert len(fake_train) == len(study.trials) == 5
    rates = [trial.params["vae_module.optimizer.lr"] for trial in study.trials]
    assert len(set(rates)) == 5  # the seed of the sampler does not begin again
    search(make_config("hparams_search.n_trials=5"))
    assert len(fake_train) == 5


def test_an_interrupted_trial_is_failed_and_not_counted(
    make_config, fake_train, monkeypatch, folder
):
    def stop(cfg, callbacks=()):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "train", stop)
        with pytest.raises(KeyboardInterrupt):
            search(make_config("hparams_search.n_trials=2"))
    study = search(make_config("hparams_search.n_trials=2"))
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    assert [job.status for job in read_jobs(folder)] == ["missing", "done", "done"]


def test_no_connection_to_the_study_stays_open(make_config, fake_train, monkeypatch, folder):
    connect, opened = sqlite3.dbapi2.connect, []

    def record(*args, **kwargs):
        opened.append(connect(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr("sqlite3.dbapi2.connect", record)
    study = search(make_config("hparams_search.n_trials=1"))
    assert len(study.trials) == 1
    assert opened
    for connection in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("SELECT 1")


@pytest.mark.parametrize("url", [None, "sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_study_in_memory_keeps_its_connection(url):
    assert module._storage(url) == url


def test_a_trial_that_fails_is_counted_and_says_why(make_config, monkeypatch, folder):
    def train(cfg, callbacks=()):
        if Path(cfg.paths.output_dir).name == "trial_001":
            raise ValueError("no room")
        return {"crmse": None if cfg.paths.output_dir.endswith("2") else 0.5}

    monkeypatch.setattr(module, "train", train)
    study = search(make_config("hparams_search.n_trials=3"))
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL]
    jobs = read_jobs(folder)
    assert jobs[1].message == "ValueError: no room"
    assert "the run's summary has no crmse" in jobs[2].message
    assert "no room" in json.loads((folder / "trial_001" / "status.json").read_text())["traceback"]
    search(make_config("hparams_search.n_trials=3"))
    assert len(read_jobs(folder)) == 3


def test_a_search_of_failures_alone_is_one(make_config, monkeypatch):
    monkeypatch.setattr(module, "train", lambda cfg, callbacks: {"match_rate": 1.0})
    with pytest.raises(SearchError, match="came to its end"):
        search(make_config("hparams_search.n_trials=2"))


def test_other_settings_are_another_study(make_config, fake_train, folder):
    search(make_config("hparams_search.n_trials=1"))
    with pytest.raises(
        SearchError, match=r"other settings of \['data.batch_size', .*max_epochs'\]"
    ):
        search(make_config("data.batch_size=8", "trainer.max_epochs=7"))
    with pytest.raises(SearchError, match="trials of another study"):
        search(make_config("hparams_search.study_name=a"))
    assert len(fake_train) == 1


def test_no_trial_starts_after_the_time_limit(make_config, fake_train):
    with pytest.raises(SearchError, match="no trial was started"):
        search(make_config("hparams_search.timeout=1e-9", "hparams_search.n_trials=2"))
    assert fake_train == []


def test_one_process_at_a_time(make_config, fake_train, folder):
    with module.lock_folder(folder), pytest.raises(OutputError, match="in use by"):
        search(make_config("hparams_search.n_trials=1"))


# Direction


@pytest.mark.parametrize(
    ("figure", "direction"),
    [
        ("crmse", "minimize"),
        ("crmse_default", "minimize"),
        ("best_val_loss", "minimize"),
        ("val/coords_rmsd", "minimize"),
        ("val/kl_loss", "minimize"),
        ("volume_mape", "minimize"),
        ("match_timeouts", "minimize"),
        ("time_s", "minimize"),
        ("match_rate_default", "maximize"),
        ("val/match_rate", "maximize"),
        ("atom_type_accuracy", "maximize"),
        ("crystals_per_second", "maximize"),
        ("num_parameters", None),
        ("val/novel", None),
    ],
)
def test_the_direction_of_a_figure(figure, direction):
    assert direction_of(figure) == direction


def test_every_figure_of_a_validation_has_a_direction():
    """So that none that one may monitor is taken the wrong way."""
    errors = ReconstructionErrors()
    errors.update(crystals := CrystalBatch.from_structures([SALT]), crystals)
    assert None not in map(direction_of, [*errors.compute(), "loss", "match_rate", "rmse"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("direction=maximize", r"worst crmse: choose minimize"),
        ("objective=match_rate", r"worst match_rate: choose maximize"),
        ("direction=maximise", r"direction is minimize or maximize, not maximise"),
        ("storage=nowhere", r"storage=nowhere cannot be used: Could not parse"),
        ("storage=sqlite:////nowhere/study.db", r"study.db cannot be used: .*unable to open"),
    ],
)
def test_a_search_for_the_worst_is_refused(make_config, fake_train, setting, message):
    with pytest.raises(SearchError, match=message):
        search(make_config(f"hparams_search.{setting}"))
    assert fake_train == []


@pytest.fixture
def telling_train(monkeypatch):
    """Trials of given qualities, which all of their figures tell at each of three validations."""

    def use(qualities: list[float]) -> None:
        given = iter(qualities)

        def train(cfg, callbacks=()):
            quality = next(given)
            figures = {"val/coords_rmsd": 1 - quality, "val/atom_type_accuracy": quality}
            for epoch in range(3):
                trainer = SimpleNamespace(
                    sanity_checking=False, callback_metrics=figures, current_epoch=epoch
                )
                for callback in callbacks:
                    callback.on_validation_end(trainer, None)
            return {"crmse": 1 - quality, "match_rate": quality}

        monkeypatch.setattr(module, "train", train)

    return use


@pytest.mark.parametrize("monitor", ["val/coords_rmsd", "val/atom_type_accuracy"])
@pytest.mark.parametrize(
    ("objective", "direction"), [("crmse", "minimize"), ("match_rate", "maximize")]
)
def test_worse_trials_are_stopped_and_better_ones_are_not(
    make_config, telling_train, objective, direction, monitor
):
    telling_train([0.5, 0.6, 0.9, 0.1, 0.95, 0.2])
    study = search(make_config(
        "hparams_search.n_trials=6", "hparams_search.pruner.n_startup_trials=2",
        "hparams_search.pruner.n_warmup_steps=0", f"hparams_search.objective={objective}",
        f"hparams_search.direction={direction}", f"hparams_search.monitor={monitor}",
    ))  # fmt: skip
    done, stopped = TrialState.COMPLETE, TrialState.PRUNED
    assert [t.state for t in study.trials] == [done, done, done, stopped, done, stopped]
    assert study.best_trial.number == 4


def test_bounds_of_a_figure_stay_what_they_are(make_config, telling_train):
    """A pruner that compares no trials sees the figure itself, whatever the study does."""
    telling_train([0.9, 0.1])
    study = search(make_config(
        "hparams_search.n_trials=2", "hparams_search.objective=match_rate",
        "hparams_search.direction=maximize", *instead("hparams_search.pruner", stop_above(0.5)),
    ))  # fmt: skip
    assert [t.state for t in study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]


def test_a_study_that_was_begun_with_the_other_sign_does_not_go_on(
    make_config, telling_train, monkeypatch
):
    telling_train([0.5, 0.6])
    cfg = make_config(
        "hparams_search.n_trials=1", "hparams_search.objective=match_rate",
        "hparams_search.direction=maximize",
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(module, "_monitor_sign", lambda settings, pruner: 1)
        search(cfg)
    with pytest.raises(SearchError, match=r"other settings of \['hparams_search.monitor'\]"):
        search(cfg)


def test_a_figure_that_tells_nothing_goes_the_way_of_the_objective(
    make_config, telling_train, caplog
):
    telling_train([0.5, 0.6])
    search(make_config("hparams_search.n_trials=1", "hparams_search.monitor=val/own"))
    assert "the name val/own does not tell which values are better" in caplog.text


# Real trials


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        crystals = pd.read_csv(next((ROOT / "data" / "prototypes").glob(f"{split}.csv*"))).head(16)
        crystals.to_csv(folder / f"{split}.csv", index=False)
    return folder


@pytest.fixture
def real(data_dir) -> list[str]:
    return [
        *TINY, f"data.data_dir={data_dir}", f"paths.cache_dir={data_dir}/cache",
        "data.batch_size=16", "trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1",
    ]  # fmt: skip


def test_two_real_trials(make_config, real, folder):
    cfg = make_config("hparams_search.n_trials=2", *real, "callbacks=default", "logger=csv")
    study = search(cfg)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    assert list(study.trials[0].intermediate_values) == [0, 1]
    for trial in study.trials:
        run = folder / f"trial_{trial.number:03d}"
        assert {"config.yaml", "summary.json", "checkpoints"} <= {p.name for p in run.iterdir()}
        vae = VAEModule.load_from_checkpoint(run / "checkpoints" / "best.ckpt")
        assert vae.latent_dim == trial.params["vae_module.latent_dim"]
        assert json.loads((run / "summary.json").read_text())["crmse"] == trial.value


@pytest.mark.slow
def test_each_trial_is_a_run_of_weights_and_biases(make_config, real, folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    search(make_config("hparams_search.n_trials=2", *real, "logger=wandb"))
    for trial in ("trial_000", "trial_001"):
        assert len(list((folder / trial / "wandb").glob("offline-run-*"))) == 1


def test_a_figure_that_no_validation_has_is_named(make_config, real, caplog):
    search(make_config("hparams_search.n_trials=1", *real, "hparams_search.monitor=val/rmsd"))
    assert "no validation logged val/rmsd, so the trial could not be stopped" in caplog.text
    assert "val/coords_rmsd" in caplog.text


def test_a_real_trial_is_pruned(make_config, real, folder):
    pruner = instead("hparams_search.pruner", stop_above(1e-9))
    with pytest.raises(SearchError, match="came to its end"):
        search(make_config("hparams_search.n_trials=1", *real, *pruner))
    (job,) = read_jobs(folder)
    assert (job.status, job.message) == ("pruned", "Trial was pruned at epoch 0.")
    assert job.summary == {}


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on(tmp_path):
    command = [
        sys.executable, str(ROOT / "src" / "search_vae.py"), "experiment=prototypes/vae_dng",
        "hparams_search.n_trials=3", f"hydra.run.dir={tmp_path}/search",
        f"paths.cache_dir={tmp_path}/cache", "trainer=cpu", "trainer.max_epochs=2",
        "+trainer.limit_train_batches=20", "eval.num_crystals=16", "eval.num_workers=1",
        *(f"vae_module.{part}.{size}" for part in ("encoder", "decoder")
          for size in ("d_model=16", "nhead=2", "dim_feedforward=16")),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    folder = tmp_path / "search"
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while not (folder / "trial_001" / "config.yaml").is_file():
            assert process.poll() is None, "it ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "2 trials left to run" in done.stdout
    storage = module._storage(f"sqlite:///{folder}/study.db")
    study = optuna.load_study(study_name="default", storage=storage)
    states = [trial.state for trial in study.trials]
    assert states.pop(1) == TrialState.FAIL
    assert states == [TrialState.COMPLETE] * 3
    assert [job.status for job in read_jobs(folder)] == ["done", "missing", "done", "done"]
    assert (folder / "trial_003" / "checkpoints" / "best.ckpt").is_file()
    assert not (folder / "trial_003" / "checkpoints" / "last.ckpt").exists()


def test_the_command_that_trains_searches_too():
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        train = compose("train_vae", ["hparams_search=optuna"], return_hydra_config=True)
        search = compose("search_vae", return_hydra_config=True)
        plain = compose("train_vae")
    assert OmegaConf.to_container(train.hydra.run) == OmegaConf.to_container(search.hydra.run)
    assert train.hparams_search == search.hparams_search
    assert "hparams_search" not in plain


def test_a_missing_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "optuna"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, module.__name__)
    with pytest.raises(UserError, match=r"a search needs optuna, .*\.\[sweeps\]"):
        importlib.import_module(module.__name__)
