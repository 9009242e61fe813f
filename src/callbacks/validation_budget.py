"""Limit the time spent on validation, and always validate at the end."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer

from src.utils.errors import UserError

NEVER = 10**9


class ValidationBudget(Callback):
    """Limits validation, including its checkpoints and metrics, to a fraction of the run time.

    The first epoch ends with a validation. A later epoch does if, when it starts, enough time has
    passed since the last validation to keep the cost within `max_share`. The run also ends with a
    validation, whichever limit ends it. The same config therefore suits both one-minute and
    0.1-second epochs. In a distributed run, the first process decides for all.

    If the Trainer has its own `check_val_every_n_epoch`, only the validation at the end is added.

    Args:
        max_share: maximum fraction of the run time; None: validate after every epoch.
    """

    def __init__(self, max_share: float | None = 0.04) -> None:
        if max_share is not None and not 0 < max_share < 1:
            raise UserError(f"max_share must be between 0 and 1, not {max_share}")
        self.max_share = max_share
        self._decides = True
        self._began: float | None = None  # of a validation that has not been accounted for
        self._ended = -float("inf")
        self._cost = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._decides = trainer.check_val_every_n_epoch == 1 and self.max_share is not None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = time.monotonic()
        if self._began is not None:
            self._cost, self._ended, self._began = now - self._began, now, None
        if self._decides and self.max_share is not None:
            due = now - self._ended >= self._cost * (1 / self.max_share - 1)
            due = trainer.strategy.broadcast(due)
            trainer.check_val_every_n_epoch = 1 if due else NEVER

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if 0 <= trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True
        if trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1
