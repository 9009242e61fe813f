"""A training run of any module: from a composed config to weights, figures and a table."""

import json
import logging
import math
import os
import shutil
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from hydra.utils import instantiate
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from src.base import CrystalModule
from src.callbacks import LastCheckpoint, StopWhenTold
from src.callbacks.throughput import Throughput
from src.commands.resuming import CONFIG, find_resume, run_record
from src.commands.starting import (
    batch_size_for,
    is_automatic,
    is_given,
    load_start,
    with_settings_of,
    with_small_networks,
)
from src.commands.trained_model import SPLITS_FILE, kept_splits, warn_of_other_cell
from src.data import DataModule
from src.utils.checkpoints import check_weights, load_checkpoint
from src.utils.config import to_plain
from src.utils.errors import UserError
from src.utils.lock import lock_folder
from src.utils.loggers import ContinuesFrom, own_wandb_run
from src.utils.memory import keep_freed_memory
from src.utils.output import new_file
from src.utils.strict_json import write_json
from src.utils.threads import at_most_threads

log = logging.getLogger(__name__)

M = TypeVar("M", bound=CrystalModule)


class TrainingTask(ABC, Generic[M]):
    """What differs between training one kind of module and another."""

    group: ClassVar[str]
    """The key of the config that the module is built from."""
    size_group: ClassVar[str]
    """The group of configs for sizes of the module."""
    objective: ClassVar[str]
    """The figure of the summary that a sweep minimizes."""
    module_class: type[M]
    fixed: ClassVar[tuple[str, ...]]
    """The arguments of the module that determine what is computed with its weights."""
    foreign_callbacks: ClassVar[tuple[type[Callback], ...]] = ()
    """Callbacks for other kinds of module, which would fail during the training."""

    def check(self, cfg: DictConfig) -> None:
        """Raise a `UserError` for settings that would end the run only after the training."""

    def build(self, cfg: DictConfig, start: M | None = None) -> M:
        """The module to train.

        Args:
            cfg: the config of the run.
            start: the module whose weights it is to have, if any.
        """
        return instantiate(cfg[self.group])

    @abstractmethod
    def evaluate(self, module: M, datamodule: DataModule, cfg: DictConfig) -> dict[str, Any]:
        """Figures of the trained module, for `summary.json`.

        Args:
            module: the best checkpoint, on the device of the run.
        """

    def evaluate_start(
        self, module: M, datamodule: DataModule, cfg: DictConfig
    ) -> dict[str, Any] | None:
        """Figures of the weights that a run starts from, for `summary.json`; None for none."""
        return None

    def warn_of_figures(self, summary: dict[str, Any]) -> None:
        """Warn if the figures call for another training."""

    @abstractmethod
    def table(self, summary: dict[str, Any]) -> Table:
        """The figures, for the terminal, with columns for name and value.

        Args:
            summary: what `evaluate` gave, and figures of the run.
        """


def run_training(
    cfg: DictConfig, task: TrainingTask[Any], callbacks: Sequence[Callback] = ()
) -> dict[str, Any]:
    """Train a module as a config says, and write the results to the run folder.

    At the end, the run folder (`paths.output_dir`) holds `config.yaml`, `checkpoints/`,
    `metrics.csv` (with the CSV logger) and `summary.json`. Only one run at a time may use it. With
    `resume_from`, an interrupted run continues as if it had not been interrupted, and a finished
    run stays as it is.

    Args:
        cfg: the composed config.
        task: which module is trained, and what its summary shows.
        callbacks: in addition to those of the config.

    Returns:
        The content of `summary.json`.

    Raises:
        UserError: for data, a checkpoint or a config that cannot be used; the message says why.
        FileNotFoundError: for a missing checkpoint.
    """
    output_dir = Path(cfg.paths.output_dir)
    callbacks = [*_instantiate_all(cfg.callbacks), *callbacks]
    for callback in callbacks:
        if isinstance(callback, task.foreign_callbacks):
            raise UserError(
                f"the callback {type(callback).__name__} is for another kind of model: leave out "
                f"callbacks=..., or use callbacks=none"
            )
    if not cfg.init_from:
        cfg = with_small_networks(cfg, task.group, task.size_group)
    goes_on = any(isinstance(c, LastCheckpoint) for c in callbacks)
    with at_most_threads(cfg.get("num_threads")), StopWhenTold(goes_on, output_dir) as signals:
        if not _is_first_process():  # only the first one logs and writes
            logging.getLogger().setLevel(logging.ERROR)
            return _train(cfg, task, output_dir, callbacks, signals)
        with lock_folder(output_dir), own_wandb_run():
            return _train(cfg, task, output_dir, callbacks, signals)


def _train(
    cfg: DictConfig,
    task: TrainingTask[Any],
    output_dir: Path,
    callbacks: Sequence[Callback],
    signals: StopWhenTold,
) -> dict[str, Any]:
    if not 0 <= cfg.seed < 2**32:
        raise UserError(f"seed must be at least 0 and less than 2^32, not {cfg.seed}")
    task.check(cfg)
    seed_everything(cfg.seed, workers=True, verbose=False)
    torch.set_float32_matmul_precision(cfg.float32_matmul_precision)
    keep_freed_memory()

    start = None
    if cfg.init_from:
        if cfg.ckpt_path:
            raise UserError("give either init_from or ckpt_path, not both")
        start = load_start(task.module_class, cfg.init_from)
        cfg = with_settings_of(start, cfg, task.group, task.fixed)
    same_run = cfg.resume_from == "last"
    datamodule: DataModule = instantiate(
        {**to_plain(cfg.data), **(kept_splits(output_dir) if same_run else {})}
    )
    module: CrystalModule = task.build(cfg, start)
    datamodule.prepare_data()
    _keep_splits(datamodule, output_dir)
    cfg = _fit_batches(cfg, datamodule)
    if start is not None:
        check_weights(module, {"state_dict": start.state_dict()}, cfg.init_from)
        module.load_state_dict(start.state_dict())
    elif cfg.ckpt_path:
        weights = load_checkpoint(cfg.ckpt_path)
        check_weights(module, weights, cfg.ckpt_path)
        module.load_state_dict(weights["state_dict"])
        warn_of_other_cell(weights, datamodule, cfg.ckpt_path)
        log.info("Starting from the weights of %s", cfg.ckpt_path)
    if cfg.compile:
        module.compile_networks()
    trainer: Trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=_loggers(cfg))
    module.run_record = run_record(cfg, datamodule, trainer)
    resumed = find_resume(
        _with_absolute_paths(cfg), output_dir, task.group, task.fixed, module, trainer
    )
    for logger in trainer.loggers:
        if isinstance(logger, ContinuesFrom):
            logger.continue_from(resumed.step)
    _log_start(cfg, module, datamodule, trainer)
    config_before = _write_config(cfg, output_dir)
    before = None
    if (start is not None or cfg.ckpt_path) and resumed.path is None and trainer.is_global_zero:
        before = task.evaluate_start(module.to(trainer.strategy.root_device), datamodule, cfg)

    began = time.monotonic()
    with warnings.catch_warnings():
        if resumed.path is not None:
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
        trainer.fit(module, datamodule, ckpt_path=resumed.path, weights_only=True)
    time_s = time.monotonic() - began
    for callback in callbacks:
        if isinstance(callback, LastCheckpoint):
            callback.heed_late_signal()

    if not trainer.is_global_zero:
        return {task.objective: math.nan}
    summary_file = output_dir / "summary.json"
    took_no_step = resumed.path is not None and trainer.global_step == resumed.step
    if took_no_step and summary_file.is_file():
        if config_before is not None:  # the settings of this command did nothing
            with new_file(output_dir / CONFIG, overwrite=True) as path:
                path.write_text(config_before)
        log.warning(
            "The run in %s is finished, and stays as it is: a larger trainer.max_epochs (or "
            "max_steps, or max_time) would continue it",
            output_dir,
        )
        return json.loads(summary_file.read_text())
    summary = _summarize(task, trainer, module, datamodule, time_s, cfg)
    summary["seed"] = cfg.seed
    if before is not None:
        summary["before_training"] = before
    task.warn_of_figures(summary)
    with new_file(summary_file, overwrite=True) as path:
        write_json(path, summary)
    signals.is_done()
    for logger in trainer.loggers:
        logger.log_metrics(
            {f"summary/{k}": v for k, v in summary.items() if isinstance(v, (int, float))},
            step=trainer.global_step,
        )
        logger.finalize("success")
    Console().print(task.table(summary))
    log.info("The run is in %s", output_dir)
    return summary


def _keep_splits(datamodule: DataModule, output_dir: Path) -> None:
    """Save the splits to the run's folder, if they were made here and not given with the data."""
    source, target = datamodule.splits_file, output_dir / SPLITS_FILE
    # the file does not exist if the cache could not be written
    if _is_first_process() and source is not None and source.is_file() and source != target:
        with new_file(target, overwrite=True) as path:
            shutil.copyfile(source, path)


def _fit_batches(cfg: DictConfig, datamodule: DataModule) -> DictConfig:
    """Use smaller batches for few crystals, if no batch size was asked for."""
    number = len(datamodule.dataset("train"))
    size = batch_size_for(number, cfg.data.batch_size)
    if not is_automatic() or is_given("data.batch_size") or size == cfg.data.batch_size:
        return cfg
    cfg = cfg.copy()
    cfg.data.batch_size = datamodule.batch_size = size
    log.info(
        "data.batch_size=%d, since there are %d training crystals: %d steps an epoch",
        size, number, -(-number // size),
    )  # fmt: skip
    return cfg


def _write_config(cfg: DictConfig, output_dir: Path) -> str | None:
    """Write the settings of a run that is about to start or to continue.

    Returns:
        The content of the file before, None if there was none.
    """
    if not _is_first_process():
        return None
    file = output_dir / CONFIG
    before = file.read_text() if file.is_file() else None
    with new_file(file, overwrite=True) as path:
        OmegaConf.save(_with_absolute_paths(cfg), path, resolve=True)
    return before


def _with_absolute_paths(cfg: DictConfig) -> DictConfig:
    """Make paths absolute, so that a saved config is valid from any working directory."""
    cfg = cfg.copy()
    for key in ("data.data_dir", "data.property_file", "data.split_file", "ckpt_path", "init_from"):
        path = OmegaConf.select(cfg, key)
        if path and not (key == "init_from" and not Path(path).expanduser().exists()):  # on the Hub
            OmegaConf.update(cfg, key, str(Path(path).expanduser().absolute()))
    return cfg


def _summarize(
    task: TrainingTask[Any],
    trainer: Trainer,
    module: CrystalModule,
    datamodule: DataModule,
    time_s: float,
    cfg: DictConfig,
) -> dict[str, Any]:
    """Figures of a finished run, with its best checkpoint."""
    checkpoint = getattr(trainer.checkpoint_callback, "best_model_path", "") or None
    best_score = getattr(trainer.checkpoint_callback, "best_model_score", None)
    best = module
    if checkpoint:
        best = task.module_class.load_from_checkpoint(checkpoint).to(module.device)
    log.info("Evaluating %s", checkpoint or "the model")
    throughput = next((c for c in trainer.callbacks if isinstance(c, Throughput)), Throughput())  # type: ignore[attr-defined]
    return {
        **task.evaluate(best, datamodule, cfg),
        "crystals_per_second": throughput.crystals_per_second * trainer.world_size,
        "time_s": throughput.total_seconds or time_s,
        "training_steps_s": throughput.seconds,  # the rest: start, validation, checkpoints
        # begun, not completed: a run resumed at its end does not complete its last epoch again
        "epochs": trainer.fit_loop.epoch_progress.current.ready,
        "steps": trainer.global_step,
        "best_epoch": _epoch_of(checkpoint),
        "best_val_loss": math.nan if best_score is None else float(best_score),
        "num_parameters": sum(p.numel() for p in module.parameters()),
        "precision": str(trainer.precision),
        "checkpoint": checkpoint,
    }


def _epoch_of(checkpoint: str | None) -> int | None:
    """The number of epochs that the model of a checkpoint was trained for."""
    return None if checkpoint is None else load_checkpoint(checkpoint).get("epoch", -1) + 1


def _instantiate_all(configs: DictConfig | None) -> list[Any]:
    return [instantiate(c) for c in (configs or {}).values() if c and "_target_" in c]


def _loggers(cfg: DictConfig) -> list[Logger] | bool:
    return _instantiate_all(cfg.get("logger")) or False


def _is_first_process() -> bool:
    """Whether this is the first process of a distributed run, before there is a Trainer."""
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    return first and os.environ.get("NODE_RANK", "0") == "0"


def _log_start(
    cfg: DictConfig, module: CrystalModule, datamodule: DataModule, trainer: Trainer
) -> None:
    log.info(
        "%s: %s training crystals, %.1f M parameters, %s on %s x %d",
        cfg.task_name,
        f"{len(datamodule.dataset('train')):,}",
        sum(p.numel() for p in module.parameters()) / 1e6,
        trainer.precision,
        trainer.strategy.root_device.type,
        trainer.world_size,
    )
