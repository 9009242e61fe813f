"""Training a prior over the latents of a VAE."""

from collections.abc import Sequence
from typing import Any

from hydra.utils import instantiate
from lightning import Callback
from omegaconf import DictConfig
from rich.table import Table

from src.callbacks import MatchRate, ReconstructionPictures
from src.commands.trained_model import load_shared
from src.commands.training_run import TrainingTask, run_training
from src.data import DataModule
from src.ldm_module import LDMModule
from src.ldm_module.evaluation import evaluate_ldm
from src.utils.errors import UserError
from src.vae_module import VAEModule

ROWS = [
    ("valid structures", "valid_structure", "{:.2%}"),
    ("valid compositions", "valid_composition", "{:.2%}"),
    ("both", "valid", "{:.2%}"),
    ("unique, of valid structures", "unique", "{:.2%}"),
    ("novel, of valid structures", "novel", "{:.2%}"),
    ("Wasserstein distance of density", "wdist_density", "{:.3f} g/cm³"),
    ("Wasserstein distance of number of elements", "wdist_num_elements", "{:.3f}"),
    ("match rate (stol 0.5, ltol 0.3, angle 10°)", "match_rate", "{:.2%}"),
    ("  RMSE of matched pairs", "rmse", "{:.4f}"),
    ("best validation loss", "best_val_loss", "{:.4f}"),
    ("  after epoch", "best_epoch", "{}"),
    ("time", "time_s", "{:.0f} s"),
    ("  of which training steps", "training_steps_s", "{:.0f} s"),
    ("epochs", "epochs", "{}"),
    ("steps", "steps", "{:,}"),
    ("speed", "crystals_per_second", "{:,.0f} crystals/s"),
]
"""Of the table: heading, name in the summary, format."""


def train_ldm(cfg: DictConfig, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Train a prior as `configs/train_ldm.yaml` says; see `run_training`."""
    return run_training(cfg, LDMTraining(), callbacks)


class LDMTraining(TrainingTask[LDMModule]):
    """Training a prior, judged by the crystals that it generates."""

    group = "ldm_module"
    size_group = "ldm_size"
    objective = "best_val_loss"
    module_class = LDMModule
    fixed = ("denoiser", "conditions", "compositions", "origins")
    foreign_callbacks = (MatchRate, ReconstructionPictures)

    def check(self, cfg: DictConfig) -> None:
        if cfg.eval.num_samples < 0 or cfg.eval.sampling_steps < 1:
            raise UserError(
                f"eval.num_samples={cfg.eval.num_samples} must be at least 0, and "
                f"eval.sampling_steps={cfg.eval.sampling_steps} at least 1"
            )

    def build(self, cfg: DictConfig, start: LDMModule | None = None) -> LDMModule:
        if start is not None and cfg.vae_ckpt_path is None:
            return instantiate(cfg.ldm_module, vae=start.vae)
        if cfg.vae_ckpt_path is None:
            raise UserError(
                "vae_ckpt_path is not set: add vae_ckpt_path=VALUE to the command, the VAE whose "
                "latents the model is to learn"
            )
        vae = load_shared(VAEModule, cfg.vae_ckpt_path, "src/train_vae.py")
        trained_on = (vae.read_options or {}).get("cell")
        if trained_on not in (None, cfg.data.cell):
            raise UserError(
                f"the VAE {cfg.vae_ckpt_path} was trained on {trained_on} cells, but "
                f"data.cell={cfg.data.cell}: set data.cell={trained_on}"
            )
        return instantiate(cfg.ldm_module, vae=vae)

    def evaluate(
        self, module: LDMModule, datamodule: DataModule, cfg: DictConfig
    ) -> dict[str, Any]:
        if not cfg.eval.num_samples:
            return {"num_samples": 0}
        sets = (datamodule.dataset("train"), datamodule.dataset("val"))
        return {
            "sampling_steps": cfg.eval.sampling_steps,
            **evaluate_ldm(module, *sets, cfg.eval.num_samples, cfg.eval.sampling_steps),
        }

    def table(self, summary: dict[str, Any]) -> Table:
        table = Table(
            title=f"{summary['num_samples']:,} generated crystals",
            caption="by the best checkpoint; distances to the validation split",
        )
        table.add_column("figure")
        table.add_column("value", justify="right")
        for heading, name, form in ROWS:
            if name in summary:
                value = summary[name]
                table.add_row(heading, "none" if value is None else form.format(value))
        return table
