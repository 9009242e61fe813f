"""A training run: from a composed config to weights, figures and a table."""

import json
import logging
import math
import os
import shutil
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from src.callbacks import LastCheckpoint, StopWhenTold
from src.callbacks.throughput import Throughput
from src.commands import SPLITS_FILE, kept_splits
from src.data import DataModule
from src.metrics.evaluate import evaluate_reconstruction
from src.metrics.matching import MatcherPool
from src.utils.checkpoints import (
    CheckpointError,
    check_weights,
    find_last,
    load_checkpoint,
    load_resumable,
)
from src.utils.config import to_plain
from src.utils.csv_logger import CSVLogger
from src.utils.errors import UserError
from src.utils.lock import lock_folder
from src.utils.loggers import own_wandb_run
from src.utils.memory import keep_freed_memory
from src.utils.output import new_file
from src.utils.strict_json import write_json
from src.utils.threads import at_most_threads
from src.vae_module import VAEModule

log = logging.getLogger(__name__)


def train(cfg: DictConfig, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Train as `configs/train_vae.yaml` says, and write what came of it to the run folder.

    The run folder (`paths.output_dir`) ends with `config.yaml`, `checkpoints/`, `metrics.csv` (of
    the csv logger) and `summary.json`. One run at a time may use it. With `resume_from` a run that
    was interrupted goes on as if it had not been; one that is finished stays as it is.

    Args:
        cfg: the composed config.
        callbacks: beside those of the config.

    Returns:
        The content of `summary.json`.

    Raises:
        ValueError: for data, a checkpoint or a config that cannot be used; the message says why.
        FileNotFoundError: for a checkpoint that is not there.
    """
    output_dir = Path(cfg.paths.output_dir)
    callbacks = [*_instantiate_all(cfg.callbacks), *callbacks]
    goes_on = any(isinstance(c, LastCheckpoint) for c in callbacks)
    with at_most_threads(cfg.get("num_threads")), StopWhenTold(goes_on) as signals:
        if not _is_first_process():  # the first speaks and writes for all
            logging.getLogger().setLevel(logging.ERROR)
            return _train(cfg, output_dir, callbacks, signals)
        with lock_folder(output_dir), own_wandb_run():
            with new_file(output_dir / "config.yaml", overwrite=True) as path:
                OmegaConf.save(_with_absolute_paths(cfg), path, resolve=True)
            return _train(cfg, output_dir, callbacks, signals)


def _check(cfg: DictConfig) -> None:
    """Find out now what would end the run only when it has been trained."""
    if not 0 <= cfg.seed < 2**32:
        raise UserError(f"seed is at least 0 and less than 2^32, not {cfg.seed}")
    if cfg.eval.num_crystals is not None and cfg.eval.num_crystals < 1:
        raise UserError(f"eval.num_crystals is at least 1 (null: all), not {cfg.eval.num_crystals}")
    try:
        MatcherPool(cfg.eval.num_workers, timeout=cfg.eval.timeout)  # which starts no process yet
    except ValueError as error:
        raise UserError(f"eval: {error}") from error


def _train(
    cfg: DictConfig, output_dir: Path, callbacks: Sequence[Callback], signals: StopWhenTold
) -> dict[str, Any]:
    _check(cfg)
    seed_everything(cfg.seed, workers=True, verbose=False)
    torch.set_float32_matmul_precision(cfg.float32_matmul_precision)
    keep_freed_memory()

    same_run = cfg.resume_from == "last"
    datamodule: DataModule = instantiate(
        {**to_plain(cfg.data), **(kept_splits(output_dir) if same_run else {})}
    )
    datamodule.prepare_data()
    _keep_splits(datamodule, output_dir)
    vae: VAEModule = instantiate(cfg.vae_module)
    if cfg.ckpt_path:
        weights = load_checkpoint(cfg.ckpt_path)
        check_weights(vae, weights, cfg.ckpt_path)
        vae.load_state_dict(weights["state_dict"])
        log.info("Starting from the weights of %s", cfg.ckpt_path)
    if cfg.compile:
        vae.compile_networks()
    trainer: Trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=_loggers(cfg))
    resume_from, first_step = _find_resume(cfg.resume_from, output_dir, vae)
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            logger.continue_from(first_step)
    _log_start(cfg, vae, datamodule, trainer)

    start = time.monotonic()
    with warnings.catch_warnings():
        if resume_from is not None:
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
        trainer.fit(vae, datamodule, ckpt_path=resume_from, weights_only=True)
    time_s = time.monotonic() - start
    for callback in callbacks:
        if isinstance(callback, LastCheckpoint):
            callback.heed_late_signal()

    if not trainer.is_global_zero:
        return {"crmse": math.nan}
    summary_file = output_dir / "summary.json"
    if resume_from is not None and trainer.global_step == first_step and summary_file.is_file():
        log.warning(
            "The run in %s is finished, and stays as it is: a larger trainer.max_epochs (or "
            "max_steps, or max_time) would continue it",
            output_dir,
        )
        return json.loads(summary_file.read_text())
    summary = summarize_run(trainer, vae, datamodule, time_s, cfg.eval)
    summary["seed"] = cfg.seed
    with new_file(summary_file, overwrite=True) as path:
        write_json(path, summary)
    signals.is_done()
    for logger in trainer.loggers:
        logger.log_metrics(
            {f"summary/{k}": v for k, v in summary.items() if isinstance(v, (int, float))},
            step=trainer.global_step,
        )
        logger.finalize("success")
    Console().print(summary_table(summary))
    log.info("The run is in %s", output_dir)
    return summary


def _keep_splits(datamodule: DataModule, output_dir: Path) -> None:
    """Leave in the run's folder which crystals it trains on, if that was dealt out here."""
    source, target = datamodule.splits_file, output_dir / SPLITS_FILE
    # it is not there where the cache cannot be written
    if _is_first_process() and source is not None and source.is_file() and source != target:
        with new_file(target, overwrite=True) as path:
            shutil.copyfile(source, path)


def _with_absolute_paths(cfg: DictConfig) -> DictConfig:
    """What is kept of a run should mean the same from any folder."""
    cfg = cfg.copy()
    for key in ("data.data_dir", "data.property_file", "data.split_file", "ckpt_path"):
        if path := OmegaConf.select(cfg, key):
            OmegaConf.update(cfg, key, str(Path(path).expanduser().absolute()))
    return cfg


def summarize_run(
    trainer: Trainer, vae: VAEModule, datamodule: DataModule, time_s: float, eval_cfg: DictConfig
) -> dict[str, Any]:
    """Figures of a finished run, with its best checkpoint, on the validation split."""
    checkpoint = getattr(trainer.checkpoint_callback, "best_model_path", "") or None
    best_score = getattr(trainer.checkpoint_callback, "best_model_score", None)
    best = vae
    if checkpoint:
        best = VAEModule.load_from_checkpoint(checkpoint).to(vae.device)
    dataset = datamodule.dataset("val")
    size = len(dataset) if eval_cfg.num_crystals is None else eval_cfg.num_crystals
    indices = torch.arange(min(size, len(dataset)))
    log.info("Evaluating %s on %d validation crystals", checkpoint or "the model", len(indices))
    batches = (dataset.batch(part) for part in indices.split(datamodule.eval_batch_size))
    with MatcherPool(eval_cfg.num_workers, timeout=eval_cfg.timeout) as pool:
        figures = evaluate_reconstruction(best, batches, pool, progress=True)
    throughput = next((c for c in trainer.callbacks if isinstance(c, Throughput)), Throughput())  # type: ignore[attr-defined]
    return {
        **figures,
        "crystals_evaluated": len(indices),
        "crystals_per_second": throughput.crystals_per_second * trainer.world_size,
        "time_s": throughput.total_seconds or time_s,
        "training_steps_s": throughput.seconds,  # the rest: start, validation, checkpoints
        # begun; of a run that is continued at its end, the last one is not counted as completed
        "epochs": trainer.fit_loop.epoch_progress.current.ready,
        "steps": trainer.global_step,
        "best_val_loss": math.nan if best_score is None else float(best_score),
        "num_parameters": sum(p.numel() for p in vae.parameters()),
        "precision": str(trainer.precision),
        "checkpoint": checkpoint,
    }


def summary_table(summary: dict[str, Any]) -> Table:
    """What a run reached, for the terminal."""
    table = Table(
        title=f"Reconstruction of {summary['crystals_evaluated']:,} validation crystals",
        caption="decoded from the posterior's mean, with the best checkpoint",
    )
    table.add_column("figure")
    table.add_column("value", justify="right")
    rows = [
        ("match rate (stol 0.5, ltol 0.3, angle 10°)", f"{100 * summary['match_rate']:.2f} %"),
        ("  RMSE of matched pairs", f"{summary['rmse']:.4f}"),
        ("match rate (pymatgen: 0.3, 0.2, 5°)", f"{100 * summary['match_rate_default']:.2f} %"),
        ("  RMSE of matched pairs", f"{summary['rmse_default']:.4f}"),
        ("matcher time-outs, counted as failures", f"{summary['match_timeouts']}"),
        ("atom types right", f"{100 * summary['atom_type_accuracy']:.2f} %"),
        ("fractional coordinates, RMSE", f"{summary['frac_coords_rmse']:.4f}"),
        ("distance of atoms, RMSD", f"{summary['coords_rmsd']:.4f} Å"),
        ("lengths, mean error", f"{summary['lengths_mae']:.4f} Å"),
        ("angles, mean error", f"{summary['angles_mae']:.3f}°"),
        ("time", f"{summary['time_s']:.0f} s"),
        ("  of which training steps", f"{summary['training_steps_s']:.0f} s"),
        ("epochs", f"{summary['epochs']}"),
        ("steps", f"{summary['steps']:,}"),
        ("speed", f"{summary['crystals_per_second']:,.0f} crystals/s"),
    ]
    for name, value in rows:
        table.add_row(name, value)
    return table


def _instantiate_all(configs: DictConfig | None) -> list[Any]:
    return [instantiate(c) for c in (configs or {}).values() if c and "_target_" in c]


def _loggers(cfg: DictConfig) -> list[Logger] | bool:
    return _instantiate_all(cfg.get("logger")) or False


def _find_resume(
    resume_from: str | None, output_dir: Path, vae: VAEModule
) -> tuple[str | None, int]:
    """The checkpoint that `resume_from` means, a path or `last`, and its step.

    `last` is that of this run folder; where there is none the run starts anew, so that a job that
    is requeued can always be given it.

    Raises:
        CheckpointError: if it is of another model or optimizer than the run that is to go on.
    """
    if resume_from is None:
        return None, 0
    if resume_from == "last":
        found = find_last(output_dir / "checkpoints")
    else:
        found = Path(resume_from), load_resumable(resume_from)
    if found is None:
        log.warning(
            "resume_from=last: there is no run to continue in %s (hydra.run.dir), so one starts",
            output_dir,
        )
        return None, 0
    path, checkpoint = found
    check_weights(vae, checkpoint, path)
    begun = (checkpoint.get("hyper_parameters") or {}).get("optimizer", vae.optimizer)
    if begun.get("_target_") != vae.optimizer["_target_"]:
        raise CheckpointError(
            f"the run of {path} was begun with {begun.get('_target_')}, whose state is of no use "
            f"to {vae.optimizer['_target_']}: continue it as it was, or begin a new run from its "
            "weights with ckpt_path"
        )
    log.info("Continuing from %s, after step %d", path, checkpoint["global_step"])
    return str(path), checkpoint["global_step"]


def _is_first_process() -> bool:
    """Of those of a distributed run, before there is a Trainer to ask."""
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    return first and os.environ.get("NODE_RANK", "0") == "0"


def _log_start(cfg: DictConfig, vae: VAEModule, datamodule: DataModule, trainer: Trainer) -> None:
    log.info(
        "%s: %s training crystals, %.1f M parameters, %s on %s x %d",
        cfg.task_name,
        f"{len(datamodule.dataset('train')):,}",
        sum(p.numel() for p in vae.parameters()) / 1e6,
        trainer.precision,
        trainer.strategy.root_device.type,
        trainer.world_size,
    )
