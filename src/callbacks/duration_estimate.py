"""Say how long a run will take, once a few of its steps have been timed."""

import logging
import math
import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer

from src.utils.durations import in_words

log = logging.getLogger(__name__)

WARMUP_STEPS = 3  # slower than the others: memory is allocated, and code is compiled
MIN_STEPS = 5
TOLERANCE = 0.25  # relative; what a second estimate must differ by to be worth a line


class DurationEstimate(Callback):
    """Logs about how long the training will take, and again if validation changes the estimate.

    The estimate includes one validation at the end. Others are left out: `ValidationBudget` limits
    them to a few percent. Nothing is logged about a run without a limit, or one that ends sooner.

    Args:
        after_s: seconds of training steps before the first estimate; 0: no estimate.
    """

    def __init__(self, after_s: float = 5.0) -> None:
        self.after_s = after_s
        self._reset()

    def _reset(self) -> None:
        """Forget an earlier run of the trainer."""
        self._started = 0.0
        self._is_resumed = False
        self._first_step = 0  # the last one of the warm-up
        self._seconds = 0.0  # of the steps after the warm-up
        self._last: float | None = None  # the end of the last step; None during the warm-up
        self._validation_s = 0.0  # of the last validation, with its checkpoints
        self._validation_began: float | None = None
        self._estimate: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reset()
        self._started, self._is_resumed = time.monotonic(), trainer.global_step > 0
        self._first_step = trainer.global_step + WARMUP_STEPS

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._validation_began = time.monotonic()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._validation_began is None:
            return
        now = time.monotonic()
        self._validation_s, self._validation_began = now - self._validation_began, None
        self._last = None if self._last is None else now
        if self._estimate is not None:
            self._say(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if trainer.global_step >= self._first_step and self.after_s > 0:
            self._seconds += 0.0 if self._last is None else now - self._last
            self._last = now
            is_enough = trainer.global_step >= self._first_step + MIN_STEPS
            if self._estimate is None and is_enough and self._seconds >= self.after_s:
                self._say(trainer)

    def _say(self, trainer: Trainer) -> None:
        step = trainer.global_step
        per_step = self._seconds / (step - self._first_step)
        left = (trainer.estimated_stepping_batches - step) * per_step + self._validation_s
        for timer in (c for c in trainer.callbacks if isinstance(c, Timer)):  # type: ignore[attr-defined]
            left = min(left, timer.time_remaining("train") or math.inf)
        total = time.monotonic() - self._started + left
        before = self._estimate
        if math.isinf(left) or (before and abs(total - before) <= TOLERANCE * before):
            return
        self._estimate = total
        steps = min(step + left / per_step, trainer.estimated_stepping_batches)
        per_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
        epochs = max(1, round(steps / per_epoch))
        until = f"for {epochs:,} epoch{'s' if epochs > 1 else ''}"
        log.info(
            "%s will %stake about %s on this machine, %s",
            "The rest of the training" if self._is_resumed else "The training",
            "" if before is None else "rather ",
            in_words(total),
            f"to epoch {epochs:,}" if self._is_resumed else until,
        )
