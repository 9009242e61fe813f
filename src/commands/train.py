"""Training a VAE."""

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


def train(cfg: DictConfig, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Train a VAE as configured in `configs/train_vae.yaml`; see `run_training`."""
    return run_training(cfg, VAETraining(), callbacks)


class VAETraining(TrainingTask[VAEModule]):
    """Trains a VAE and evaluates how well it reconstructs the validation split."""

    group = "vae_module"
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
        dataset = datamodule.dataset("val")
        size = len(dataset) if cfg.eval.num_crystals is None else cfg.eval.num_crystals
        indices = torch.arange(min(size, len(dataset)))
        batches = (dataset.batch(part) for part in indices.split(datamodule.eval_batch_size))
        with open_matcher(cfg.eval.matcher, cfg.eval.num_workers, cfg.eval.timeout) as matcher:
            figures = evaluate_reconstruction(module, batches, matcher, progress=True)
        return {**figures, "crystals_evaluated": len(indices), "matcher": matcher.name}

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
            ("matcher timeouts, counted as failures", f"{summary['match_timeouts']}"),
            ("atom type accuracy", f"{100 * summary['atom_type_accuracy']:.2f} %"),
            ("fractional coordinates, RMSE", f"{summary['frac_coords_rmse']:.4f}"),
            ("atom displacement, RMSD", f"{summary['coords_rmsd']:.4f} Å"),
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
