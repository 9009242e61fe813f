"""Learning-rate schedules, and the fraction of its budget that a run has used."""

import math
from abc import ABC, abstractmethod

from lightning import Trainer
from lightning.pytorch.callbacks import Timer

from src.utils.errors import UserError


class Schedule(ABC):
    """Maps the step and the used fraction of the budget to a factor on the base learning rate."""

    @abstractmethod
    def __call__(self, step: int, progress: float) -> float: ...


class Constant(Schedule):
    """The base learning rate after a linear warm-up.

    Args:
        warmup_steps: steps until the base learning rate is reached.

    Raises:
        UserError: if `warmup_steps` is negative.
    """

    def __init__(self, warmup_steps: int = 0) -> None:
        self.warmup_steps = _checked(warmup_steps)

    def __call__(self, step: int, progress: float) -> float:
        return min(1.0, (step + 1) / (self.warmup_steps + 1))


class WarmupCosine(Schedule):
    """Linear warm-up, then half a cosine down to `final_factor` at the end of the budget.

    Args:
        warmup_steps: steps until the base learning rate is reached.
        final_factor: final learning rate, as a factor on the base learning rate.

    Raises:
        UserError: if `warmup_steps` is negative.
    """

    def __init__(self, warmup_steps: int = 200, final_factor: float = 0.01) -> None:
        self.warmup_steps = _checked(warmup_steps)
        self.final_factor = final_factor

    def __call__(self, step: int, progress: float) -> float:
        warmup = min(1.0, (step + 1) / (self.warmup_steps + 1))
        cosine = 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
        return warmup * (self.final_factor + (1 - self.final_factor) * cosine)


def _checked(warmup_steps: int) -> int:
    if warmup_steps < 0:
        raise UserError(f"warmup_steps must be at least 0, not {warmup_steps}")
    return warmup_steps


def run_progress(trainer: Trainer, step: int) -> float:
    """Fraction of the run's budget that is used after `step` steps, in [0, 1].

    The budget is whichever of `max_epochs`, `max_steps` and `max_time` ends the run first. All
    processes get the same value, so all of them must call this. The time before a run was resumed
    counts.
    """
    progress = own_progress(trainer, step)
    if _timers(trainer) and trainer.world_size > 1:
        progress = trainer.strategy.broadcast(progress)
    return progress


def own_progress(trainer: Trainer, step: int) -> float:
    """Like `run_progress`, by the clock of this process, which may call this alone."""
    steps = trainer.estimated_stepping_batches
    progress = step / steps if 0 < steps < float("inf") else 0.0
    for timer in _timers(trainer):
        elapsed, remaining = timer.time_elapsed("train"), timer.time_remaining("train")
        if remaining is not None:
            progress = max(progress, elapsed / max(elapsed + remaining, 1e-9))
    return min(progress, 1.0)


def _timers(trainer: Trainer) -> list[Timer]:
    return [c for c in trainer.callbacks if isinstance(c, Timer)]  # type: ignore[attr-defined]
