"""Training a VAE."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from lightning import Callback
from omegaconf import DictConfig
from rich.table import Table

from src.callbacks import SamplePictures
from src.commands.training_run import TrainingTask, run_training
from src.data import DataModule
from src.metrics.matching import open_matcher
from src.metrics.reconstruction.evaluate import evaluate_reconstruction
from src.utils.errors import UserError
from src.vae_module import VAEModule

log = logging.getLogger(__name__)

MAX_OF_TRAINING = 500  # training crystals to compare with those of the validation split
WORSE = 0.02  # relative rise of the cRMSE above which a warning says so
MAX_GAP = 0.1  # between their match rates, above which a warning says so


def train(cfg: DictConfig, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Train a VAE as configured in `configs/train_vae.yaml`; see `run_training`."""
    return run_training(cfg, VAETraining(), callbacks)


class VAETraining(TrainingTask[VAEModule]):
    """Trains a VAE and evaluates how well it reconstructs the validation split."""

    group = "vae_module"
    size_group = "size"
    objective = "crmse"
    module_class = VAEModule
    fixed = ("encoder", "decoder", "latent_dim", "atom_type_predict", "quant_bias")
    foreign_callbacks = (SamplePictures,)

    def check(self, cfg: DictConfig) -> None:
        if cfg.eval.num_crystals is not None and cfg.eval.num_crystals < 1:
            raise UserError(
                f"eval.num_crystals must be at least 1 (null: all), not {cfg.eval.num_crystals}"
            )
        try:
            open_matcher(cfg.eval.matcher, cfg.eval.num_workers, cfg.eval.timeout).close()
        except ValueError as error:
            raise UserError(f"eval: {error}") from error

    def evaluate(
        self, module: VAEModule, datamodule: DataModule, cfg: DictConfig
    ) -> dict[str, Any]:
        size = cfg.eval.num_crystals
        figures = _evaluate_split(module, datamodule, cfg, "val", size)
        number = min(figures["crystals_evaluated"], MAX_OF_TRAINING)
        of_training = _evaluate_split(module, datamodule, cfg, "train", number)
        names = ("crystals_evaluated", "match_rate", "rmse", "crmse")
        return {**figures, "training_split": {name: of_training[name] for name in names}}

    def evaluate_start(
        self, module: VAEModule, datamodule: DataModule, cfg: DictConfig
    ) -> dict[str, Any]:
        figures = _evaluate_split(module, datamodule, cfg, "val", cfg.eval.num_crystals)
        names = ("match_rate", "rmse", "crmse")
        log.info(
            "Before training: match rate %.2f %%, cRMSE %.4f on %d validation crystals",
            100 * figures["match_rate"], figures["crmse"], figures["crystals_evaluated"],
        )  # fmt: skip
        return {name: figures[name] for name in names}

    def warn_of_figures(self, summary: dict[str, Any]) -> None:
        gap = summary["training_split"]["match_rate"] - summary["match_rate"]
        if gap > MAX_GAP:
            log.warning(
                "The match rate is %.0f %% on training and %.0f %% on validation crystals: "
                "the model has learned its training crystals by heart. More crystals help, or "
                "starting from a trained model with init_from=CHECKPOINT",
                100 * summary["training_split"]["match_rate"], 100 * summary["match_rate"],
            )  # fmt: skip
        before = summary.get("before_training")
        if before and (1 + WORSE) * before["crmse"] < summary["crmse"]:
            log.warning(
                "The model was better before this training (cRMSE %.4f, now %.4f): use the "
                "checkpoint that it started from, or a lower vae_module.optimizer.lr",
                before["crmse"], summary["crmse"],
            )  # fmt: skip

    def table(self, summary: dict[str, Any]) -> Table:
        table = Table(
            title=f"Reconstruction of {summary['crystals_evaluated']:,} validation crystals",
            caption="decoded from the posterior's mean, with the best checkpoint; "
            f"matcher: {summary['matcher']}",
        )
        table.add_column("metric")
        table.add_column("value", justify="right")
        rows = [
            ("match rate (stol 0.5, ltol 0.3, angle 10°)", f"{100 * summary['match_rate']:.2f} %"),
            ("  RMSE of matched pairs", f"{summary['rmse']:.4f}"),
            ("match rate (pymatgen: 0.3, 0.2, 5°)", f"{100 * summary['match_rate_default']:.2f} %"),
            ("  RMSE of matched pairs", f"{summary['rmse_default']:.4f}"),
            *_compared(summary),
            ("matcher timeouts, counted as failures", f"{summary['match_timeouts']}"),
            ("atom type accuracy", f"{100 * summary['atom_type_accuracy']:.2f} %"),
            ("fractional coordinates, RMSE", f"{summary['frac_coords_rmse']:.4f}"),
            ("atom displacement, RMSD", f"{summary['coords_rmsd']:.4f} Å"),
            ("lengths, mean error", f"{summary['lengths_mae']:.4f} Å"),
            ("angles, mean error", f"{summary['angles_mae']:.3f}°"),
            ("time", f"{summary['time_s']:.0f} s"),
            ("  of which training steps", f"{summary['training_steps_s']:.0f} s"),
            ("epochs", f"{summary['epochs']}"),
            ("  best checkpoint after epoch", f"{summary['best_epoch'] or '-'}"),
            ("steps", f"{summary['steps']:,}"),
            ("speed", f"{summary['crystals_per_second']:,.0f} crystals/s"),
        ]
        for name, value in rows:
            table.add_row(name, value)
        return table


def _compared(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows that set the figures of the validation split beside others."""
    of_training = summary["training_split"]
    gap = of_training["match_rate"] - summary["match_rate"]
    rows = [
        (
            f"match rate of {of_training['crystals_evaluated']:,} training crystals",
            f"{100 * of_training['match_rate']:.2f} %",
        ),
        ("  gap to validation, percentage points", f"{100 * gap:+.2f}"),
        ("  RMSE of matched pairs", f"{of_training['rmse']:.4f}"),
    ]
    if before := summary.get("before_training"):
        rows += [
            ("match rate before this training", f"{100 * before['match_rate']:.2f} %"),
            ("  RMSE of matched pairs", f"{before['rmse']:.4f}"),
        ]
    return rows


def _evaluate_split(
    module: VAEModule, datamodule: DataModule, cfg: DictConfig, split: str, number: int | None
) -> dict[str, Any]:
    """Figures of the first crystals of a split, or of all."""
    dataset = datamodule.dataset(split)
    indices = torch.arange(len(dataset) if number is None else min(number, len(dataset)))
    batches = (dataset.batch(part) for part in indices.split(datamodule.eval_batch_size))
    with open_matcher(cfg.eval.matcher, cfg.eval.num_workers, cfg.eval.timeout) as matcher:
        figures = evaluate_reconstruction(module, batches, matcher, f"matching, {split} split")
    return {**figures, "crystals_evaluated": len(indices), "matcher": matcher.name}
