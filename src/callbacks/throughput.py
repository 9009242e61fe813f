"""Measure training speed in crystals per second."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer


class Throughput(Callback):
    """Measures training speed, excluding validation and the checkpoints written with it.

    Logs `train/crystals_per_second` every `log_every_n_steps` (0: never), averaged over the steps
    since it was last logged. A resumed run includes the steps from before it was resumed.
    """

    def __init__(self) -> None:
        self.crystals = 0
        self.seconds = 0.0
        self._before = 0.0  # seconds before the run was resumed
        self._began: float | None = None
        self._window = (0, 0.0)
        self._last: float | None = None  # the end of the last batch; None after a pause

    @property
    def crystals_per_second(self) -> float:
        """Average over the whole run, in this process."""
        return self.crystals / self.seconds if self.seconds else 0.0

    @property
    def total_seconds(self) -> float:
        """Wall time since the run started, including everything."""
        return self._before + (0.0 if self._began is None else time.perf_counter() - self._began)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = time.perf_counter()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before, self._began = self.total_seconds, None

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
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0:
            crystals, seconds = self._window
            rate = (self.crystals - crystals) / max(self.seconds - seconds, 1e-9)
            self._window = (self.crystals, self.seconds)
            pl_module.log("train/crystals_per_second", rate * trainer.world_size, prog_bar=True)

    def state_dict(self) -> dict[str, Any]:
        return {
            "crystals": self.crystals,
            "seconds": self.seconds,
            "total_seconds": self.total_seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.crystals, self.seconds = state_dict["crystals"], state_dict["seconds"]
        self._before = state_dict["total_seconds"]
        self._window = (self.crystals, self.seconds)
