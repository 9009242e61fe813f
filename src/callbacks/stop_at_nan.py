"""Stop a run whose loss or gradient is no longer finite."""

import math
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from src.callbacks.every_n_epochs import look_every_n_steps
from src.data.dataset import CrystalDataset
from src.data.schema import CrystalBatch
from src.utils.errors import UserError


class NonFiniteError(UserError):
    """A loss or gradient is NaN or infinite; the message names the step and the term."""


class StopAtNaN(Callback):
    """Stops a run if the loss, one of its terms, or the gradient norm is not finite.

    On a CPU, every step is checked when it ends. On other devices that would force a
    synchronization, so steps are checked together every `log_every_n_steps`, which synchronizes
    anyway (every 20 if the run logs no steps). In either case, all steps are checked before a
    checkpoint is written. The error names the first bad step. Its batch is saved in the run folder,
    and `CrystalDataset.load` reads it.

    The gradient norm is checked only if gradients are clipped.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[int, dict[str, torch.Tensor], CrystalBatch]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        values = {**getattr(pl_module, "last_step", {}), "loss": outputs["loss"]}
        self._steps.append((trainer.global_step, values, batch))
        on_cpu = trainer.strategy.root_device.type == "cpu"
        if on_cpu or trainer.global_step % look_every_n_steps(trainer) == 0:
            self._look(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._look(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look(trainer)
        losses = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/") and name.endswith("loss")
        }
        if _not_finite(losses):
            raise NonFiniteError(
                f"in the validation after step {trainer.global_step}, {_say(losses)}"
            )

    def _look(self, trainer: Trainer) -> None:
        steps, self._steps = self._steps, []
        if not steps:
            return
        flat = torch.stack([v.float() for _, values, _ in steps for v in values.values()])
        if bool(flat.isfinite().all()):
            return
        for step, tensors, batch in steps:
            values = {name: float(value) for name, value in tensors.items()}
            if _not_finite(values):
                rank = f"_rank_{trainer.global_rank}" if trainer.world_size > 1 else ""
                path = Path(trainer.default_root_dir) / f"nan_batch_step_{step}{rank}.safetensors"
                CrystalDataset.from_batch(batch.cpu()).save(path)
                raise NonFiniteError(
                    f"in step {step}, {_say(values)}; its batch is in {path}. No checkpoint has "
                    "been written since. A lower learning rate, a longer warm-up or "
                    "gradient clipping (trainer.gradient_clip_val) may help"
                )


def _not_finite(values: dict[str, float]) -> list[str]:
    return [name for name, value in values.items() if not math.isfinite(value)]


def _say(values: dict[str, float]) -> str:
    """The values that are not finite first."""
    bad = _not_finite(values)
    rest = ", ".join(f"{k} {v:.4g}" for k, v in values.items() if k not in bad)
    return f"{', '.join(f'{k} is {values[k]}' for k in bad)}" + (f" ({rest})" if rest else "")
