"""One line that says how far a run is, and how long it will still take."""

import time
from datetime import timedelta
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from src.utils.schedules import own_progress

BAR_WIDTH = 14  # so that the line fits in 80 columns
LOSSES = {"train/loss": "loss", "val/loss": "val"}


class ProgressBar(LightningProgressBar):
    """Shows the epoch, the share of the run that is done, the time left and the losses.

    Args:
        refresh_rate: steps between updates; 0: no bar.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__()
        self.refresh_rate = refresh_rate
        self._enabled = refresh_rate > 0
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._began = (0.0, 0.0)  # the time, and the share of the run that was done then

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = self.refresh_rate > 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._enabled:
            return
        self._began = time.monotonic(), own_progress(trainer, trainer.global_step)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(BAR_WIDTH),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[losses]}"),
        )
        self._task = self._bar.add_task("epoch 1", total=1.0, left="", losses="")
        self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % max(self.refresh_rate, 1) == 0:
            self._update(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._update(trainer)

    def _update(self, trainer: Trainer) -> None:
        if self._bar is None:
            return
        done = own_progress(trainer, trainer.global_step)
        values = {name: trainer.callback_metrics.get(key) for key, name in LOSSES.items()}
        losses = " ".join(f"{name} {float(v):.3g}" for name, v in values.items() if v is not None)
        epochs = f"/{trainer.max_epochs}" if (trainer.max_epochs or 0) > 0 else ""
        self._bar.update(
            self._task,
            description=f"epoch {trainer.current_epoch + 1}{epochs}",
            completed=done,
            left=self._time_left(done),
            losses=losses,
        )

    def _time_left(self, done: float) -> str:
        began, before = self._began
        if done <= before:
            return ""
        seconds = (time.monotonic() - began) * (1 - done) / (done - before)
        return f"{timedelta(seconds=round(seconds))} left"

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._update(trainer)
        self._stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()
