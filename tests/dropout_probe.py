"""A callback that records the dropout masks of a run in files, for runs in separate processes."""

import os
import signal
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn


class DropoutProbe(Callback):
    """Writes one line per training step and process: which of the first values were dropped.

    Args:
        folder: where to write `RANK.txt`; a resumed run appends to it.
        stop_after: send the first process a signal to stop after this step, as a cluster would.
    """

    def __init__(self, folder: str, stop_after: int | None = None) -> None:
        self.folder = Path(folder)
        self.stop_after = stop_after
        self._masks: list[str] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        dropout = pl_module.encoder.transformer.layers[0].dropout
        dropout.register_forward_hook(self._note)

    def _note(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if module.training:
            self._masks.append("".join("01"[int(x != 0)] for x in output.flatten()[:200].tolist()))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        with (self.folder / f"{trainer.global_rank}.txt").open("a") as file:
            print(trainer.global_step, *self._masks, file=file)
        self._masks = []
        if trainer.global_step == self.stop_after and trainer.is_global_zero:
            os.kill(os.getpid(), signal.SIGTERM)
