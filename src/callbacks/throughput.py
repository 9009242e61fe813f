"""How many crystals a second a run trains on."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer


class Throughput(Callback):
    """Measures training speed; validation, and checkpoints written with it, do not count.

    Logs `train/crystals_per_second` every `log_every_n_steps`, over the steps since the last time.
    """

    def __init__(self) -> None:
        self.crystals = 0
        self.seconds = 0.0
        self._window = (0, 0.0)
        self._last: float | None = None  # the end of the last batch; None after a pause

    @property
    def crystals_per_second(self) -> float:
        """Of the whole run, in this process."""
        return self.crystals / self.seconds if self.seconds else 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = None  # checkpoints are written after this

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._last is None:
            self._last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        assert self._last is not None
        self.seconds += now - self._last
        self._last = now
        self.crystals += len(batch.num_atoms)
        if trainer.global_step % max(trainer.log_every_n_steps, 1) == 0:  # type: ignore[attr-defined]
            crystals, seconds = self._window
            rate = (self.crystals - crystals) / max(self.seconds - seconds, 1e-9)
            self._window = (self.crystals, self.seconds)
            pl_module.log("train/crystals_per_second", rate * trainer.world_size, prog_bar=True)
