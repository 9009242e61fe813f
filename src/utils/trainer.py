"""Build Lightning's Trainer, with a precision that suits the hardware."""

import logging
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.callbacks import Timer

from src.utils.checkpoints import AtomicCheckpointIO
from src.utils.durations import duration
from src.utils.errors import UserError
from src.utils.precision import native_precision

SMALLEST = {"accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "log_every_n_steps": 0}


def build_trainer(
    precision: str = "auto",
    default_root_dir: str | Path = ".",
    max_time: str | float | timedelta | None = None,
    callbacks: Sequence[Callback] = (),
    plugins: Sequence[Any] = (),
    **kwargs: Any,
) -> Trainer:
    """Build a `lightning.Trainer`, which accepts all other arguments as well.

    Args:
        precision: as for the Trainer, or `auto` for `native_precision`.
        default_root_dir: as for the Trainer.
        max_time: time limit, see `src.utils.durations.duration`. Its Timer comes before the other
            callbacks, so that they see in the same step that the time is up.
        callbacks: as for the Trainer.
        plugins: as for the Trainer; `AtomicCheckpointIO` is added to them.

    Raises:
        UserError: if a number of steps, batches or epochs is too small, or `max_time` is invalid;
            Lightning would divide by zero in the middle of the run.
    """
    for name, smallest in SMALLEST.items():
        if kwargs.get(name) is not None and kwargs[name] < smallest:
            raise UserError(f"trainer.{name} must be at least {smallest}, not {kwargs[name]}")
    _say_once()
    if precision == "auto":
        precision = native_precision(kwargs.get("accelerator", "auto"))
    timer = [Timer(duration(max_time, "trainer.max_time"))] if max_time else []
    trainer = Trainer(
        precision=precision,  # type: ignore[arg-type]
        default_root_dir=default_root_dir,
        callbacks=[*timer, *callbacks],
        plugins=[AtomicCheckpointIO(), *plugins],
        **kwargs,
    )
    # If max_steps is set, Lightning assumes that each checkpoint is from within an epoch. A run
    # resumed at the end of an epoch would then skip the steps of the next one.
    trainer.fit_loop._iteration_based_training = _never  # type: ignore[method-assign]
    return trainer


def _say_once() -> None:
    """Leave Lightning's messages to the handlers of the program, if it has any.

    Lightning adds one of its own when it is imported, so they would appear twice.
    """
    if logging.getLogger().hasHandlers():
        logging.getLogger("lightning").handlers.clear()


def _never() -> bool:
    return False
