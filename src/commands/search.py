"""Bayesian search over the config with Optuna: each trial is a training run in its own folder.

Hydra's Optuna sweeper is not used: its stable release (1.2.0) needs Optuna 2, the next one needs an
unreleased version of Hydra, and neither can stop a trial early.
"""

import gc
import json
import logging
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError

from src.commands.sweep import report_sweep, write_status
from src.commands.train import train
from src.utils.config import flatten, to_plain
from src.utils.errors import UserError
from src.utils.lock import lock_folder
from src.utils.output import new_file

try:
    import optuna
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.storages import RDBStorage
    from optuna.trial import TrialState
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool
except ModuleNotFoundError as error:
    raise UserError(
        f"a search needs {error.name}, which is not installed: pip install -e '.[sweeps]'"
    ) from error

log = logging.getLogger(__name__)

SETTINGS = ("data", "vae_module", "trainer", "eval", "hparams_search")  # same in all trials
MAY_CHANGE = (
    "hparams_search.n_trials", "hparams_search.timeout", "hparams_search.storage",
    "trainer.default_root_dir", "data.cache_dir", "eval.num_workers",
)  # fmt: skip


# Suffixes of the names of metrics for which larger (or smaller) values are better
LARGER = ("match_rate", "accuracy", "per_second")
SMALLER = ("loss", "rmse", "rmsd", "mae", "mape", "timeouts", "time_s", "steps_s")


class SearchError(UserError):
    """A search that cannot start, continue or complete; the message says why."""


def search(cfg: DictConfig) -> optuna.Study:
    """Run the trials that `cfg.hparams_search` asks for, except those that have already been run.

    The search folder (`paths.output_dir`) holds a run folder per trial (`trial_007/`), `sweep.csv`
    and `sweep.png` over all trials, and `best.yaml`, the best trial's overrides. The study is
    stored in `hparams_search.storage`; if the search is interrupted, or repeated with a larger
    `n_trials`, it continues from there. An interrupted trial is marked as failed and does not count
    towards `n_trials`; a trial that failed with an error does.

    Raises:
        SearchError: if the search space does not fit the config, the study was started with
            different settings, or no trial completed.
        OutputError: if another process is using the folder.
    """
    space = parse_space(cfg)
    _check_direction(cfg)
    if cfg.resume_from is not None or cfg.trainer.devices != 1 or cfg.trainer.num_nodes != 1:
        raise SearchError(
            "a search trains each trial from its start, in one process: leave resume_from, "
            "trainer.devices and trainer.num_nodes at their defaults"
        )
    folder = Path(cfg.paths.output_dir)
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    start = time.monotonic()
    with lock_folder(folder):
        study = _open_study(cfg)
        missing = cfg.hparams_search.n_trials - sum(map(_counts, study.trials))
        log.info("%s: %d trials left to run", study.study_name, max(missing, 0))
        for _ in range(missing):
            if time.monotonic() - start >= (cfg.hparams_search.timeout or math.inf):
                break
            _run_trial(study, cfg, space)
        _report(study, folder, cfg.hparams_search.objective)
    return study


def direction_of(figure: str) -> str | None:
    """Whether to `minimize` or `maximize` a metric, judging by its name; None if that is unclear.

    Args:
        figure: a key of `summary.json` or a logged metric, such as `val/coords_rmsd`.
    """
    name = figure.rpartition("/")[2].removesuffix("_default")
    if name.endswith(LARGER):
        return "maximize"
    return "minimize" if name.endswith(SMALLER) else None


def _check_direction(cfg: DictConfig) -> None:
    settings = cfg.hparams_search
    if settings.direction not in ("minimize", "maximize"):
        raise SearchError(
            f"hparams_search.direction is minimize or maximize, not {settings.direction}"
        )
    known = direction_of(settings.objective)
    if known not in (None, settings.direction):
        raise SearchError(
            f"hparams_search.direction={settings.direction} would search for the worst "
            f"{settings.objective}: choose {known}, or another hparams_search.objective"
        )
    if settings.pruner is not None and direction_of(settings.monitor) is None:
        log.warning(
            "hparams_search.monitor: the name %s does not tell which values are better, so the "
            "direction of the objective is used: %s", settings.monitor, settings.direction,
        )  # fmt: skip


class Pruning(Callback):
    """Reports a metric to Optuna after each validation, and stops the trial if the pruner says so.

    Args:
        trial: the trial that this run belongs to.
        monitor: the logged metric to report.
        sign: -1 to negate the metric, if it improves in the opposite direction to the study's
            objective. Pruners compare trials in the direction of the study: if it maximizes, they
            stop trials with smaller values.
    """

    def __init__(self, trial: optuna.Trial, monitor: str, sign: int = 1) -> None:
        self.trial, self.monitor, self.sign = trial, monitor, sign
        self._seen = False
        self._logged: set[str] = set()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._logged |= {name for name in trainer.callback_metrics if name.startswith("val/")}
        if self.monitor not in trainer.callback_metrics:
            return  # for example a match rate, which is not computed in every validation
        self._seen, epoch = True, trainer.current_epoch
        self.trial.report(self.sign * float(trainer.callback_metrics[self.monitor]), epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned(f"Trial was pruned at epoch {epoch}.")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._logged and not self._seen:
            log.warning(
                "hparams_search.monitor: no validation logged %s, so the trial could not be "
                "stopped early; logged metrics: %s", self.monitor, sorted(self._logged),
            )  # fmt: skip


def _monitor_sign(settings: DictConfig, pruner: optuna.pruners.BasePruner) -> int:
    """-1 if the monitored metric has to be negated to improve in the direction of the study."""
    if isinstance(pruner, (optuna.pruners.NopPruner, optuna.pruners.ThresholdPruner)):
        return 1  # these do not compare trials, and their bounds apply to the metric itself
    return 1 if direction_of(settings.monitor) in (None, settings.direction) else -1


def parse_space(cfg: DictConfig) -> dict[str, BaseDistribution]:
    """The distribution of each key of `cfg.hparams_search.space`.

    Each key has either `low` and `high`, optionally with `log` or `step`, or `choices`. `also`
    names further keys that get the same value. The values are integers if the config's own value,
    `low` and `high` are.

    Raises:
        SearchError: if a key does not fit the config; the message names it.
    """
    space = to_plain(cfg.hparams_search.space)
    if not space:
        raise SearchError("hparams_search.space names nothing to search over")
    return {name: _distribution(cfg, name, options) for name, options in space.items()}


def _distribution(cfg: DictConfig, name: str, options: Mapping[str, Any]) -> BaseDistribution:
    for key in (name, *options.get("also", [])):
        try:
            present = OmegaConf.select(cfg, key)
        except ConfigKeyError:
            present = None
        if present is None:
            raise SearchError(f"hparams_search.space: {key} is not in the config, or has no value")
    given = {key: value for key, value in options.items() if key != "also"}
    try:
        if given.keys() == {"choices"}:
            if not all(isinstance(c, (bool, int, float, str)) for c in given["choices"]):
                raise ValueError("choices are numbers, words or booleans")
            return CategoricalDistribution(given["choices"])
        if any(isinstance(value, float) for value in (present, given["low"], given["high"])):
            return FloatDistribution(**given)
        return IntDistribution(**given)
    except (KeyError, TypeError, ValueError) as error:
        raise SearchError(
            f"hparams_search.space.{name} is {options}; it needs low and high, optionally with log "
            f"or step, or only choices ({error})"
        ) from error


def _open_study(cfg: DictConfig) -> optuna.Study:
    """Create or load the study, and mark interrupted trials as failed."""
    settings = cfg.hparams_search
    pruner = instantiate(settings.pruner) or optuna.pruners.NopPruner()
    try:
        study = optuna.create_study(
            storage=_storage(settings.storage),
            study_name=settings.study_name,
            direction=settings.direction,
            pruner=pruner,
            load_if_exists=True,
        )
    except (SQLAlchemyError, ImportError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise SearchError(
            f"hparams_search.storage={settings.storage} cannot be used: {reason}"
        ) from error
    if not study.trials and any(Path(cfg.paths.output_dir).glob("trial_*")):
        raise SearchError(
            f"{cfg.paths.output_dir} contains trials of another study, not of "
            f"{settings.study_name}: choose another folder with hydra.run.dir"
        )
    # with the same seed, a continued search would draw the values of the first trials again
    study.sampler = instantiate(settings.sampler, seed=settings.seed + len(study.trials))
    settings_now = flatten({name: to_plain(cfg[name]) for name in SETTINGS})
    now = {name: value for name, value in settings_now.items() if name not in MAY_CHANGE}
    if _monitor_sign(settings, pruner) < 0:
        # a study that was started without the sign stored values that are not comparable
        now["hparams_search.monitor"] = f"-{settings.monitor}"
    begun = json.loads(study.user_attrs.get("settings", json.dumps(now)))
    if changed := sorted(k for k in now.keys() | begun.keys() if now.get(k) != begun.get(k)):
        raise SearchError(
            f"the study {settings.study_name} was started with other settings of {changed}: "
            "restore them, or start a new study with hparams_search.study_name=NAME"
        )
    study.set_user_attr("settings", json.dumps(now))
    for trial in study.get_trials(states=[TrialState.RUNNING]):
        log.warning("Trial %d was interrupted", trial.number)
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def _storage(url: str | None) -> RDBStorage | str | None:
    """The `storage` argument for Optuna.

    For an SQLite file, SQLAlchemy pools connections and Optuna never closes the pool. Without a
    pool, each connection is closed after use, so the study that `search` returns does not keep the
    file open. An in-memory database needs the pool, because it lives only as long as its
    connection.
    """
    if url and re.match("sqlite:///(?!.*memory).", url):
        return RDBStorage(url, engine_kwargs={"poolclass": NullPool})
    return url


def _counts(trial: optuna.trial.FrozenTrial) -> bool:
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or "error" in trial.user_attrs


def _run_trial(study: optuna.Study, cfg: DictConfig, space: dict[str, BaseDistribution]) -> None:
    """Train with the values that the study suggests, and report the result to it."""
    settings = cfg.hparams_search
    trial = study.ask(space)
    folder = Path(cfg.paths.output_dir) / f"trial_{trial.number:03d}"
    trial_cfg, overrides = cfg.copy(), []
    for name, value in trial.params.items():
        for key in (name, *settings.space[name].get("also", [])):
            OmegaConf.update(trial_cfg, key, value)
            overrides.append(f"{key}={value}")
    trial_cfg.paths.output_dir = str(folder)
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(overrides), folder / ".hydra" / "overrides.yaml")
    log.info("Trial %d of %d: %s", trial.number, settings.n_trials, " ".join(overrides))
    try:
        pruning = Pruning(trial, settings.monitor, _monitor_sign(settings, study.pruner))
        study.tell(trial, _objective(train(trial_cfg, callbacks=[pruning]), settings.objective))
    except optuna.TrialPruned as pruned:
        study.tell(trial, state=TrialState.PRUNED)
        write_status(folder, "pruned", str(pruned))
        log.info("Trial %d was pruned", trial.number)
    except Exception as error:  # the next trial may succeed
        message = f"{type(error).__name__}: {error}"
        trial.set_user_attr("error", message)
        study.tell(trial, state=TrialState.FAIL)
        write_status(folder, "failed", message, error)
        log.error("Trial %d failed: %s", trial.number, message)
    gc.collect()  # trainer and model refer to each other, and may hold a GPU's memory


def _objective(summary: Mapping[str, Any], name: str) -> float:
    value = summary.get(name)
    if value is None or math.isnan(value):
        raise SearchError(
            f"hparams_search.objective: the run's summary has no {name}; choose one of "
            f"{[key for key, given in summary.items() if isinstance(given, float)]}"
        )
    return float(value)


def _report(study: optuna.Study, folder: Path, objective: str) -> None:
    if not study.trials:
        raise SearchError(
            "no trial was started: raise hparams_search.n_trials or hparams_search.timeout"
        )
    complete = study.get_trials(states=[TrialState.COMPLETE])
    importances = None
    if len(complete) >= 10:  # importances compare the best tenth with all trials
        importances = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    report_sweep(folder, objective, importances)
    if not complete:
        raise SearchError(f"no trial of the search in {folder} came to its end; its table says why")
    best = folder / f"trial_{study.best_trial.number:03d}"
    with new_file(folder / "best.yaml", overwrite=True) as path:
        path.write_text((best / ".hydra" / "overrides.yaml").read_text())
    log.info(
        "Trial %d is the best so far (%s = %.4g); its overrides are in best.yaml",
        study.best_trial.number, objective, study.best_value,
    )  # fmt: skip
