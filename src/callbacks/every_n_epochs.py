"""Shared code of callbacks that act every few epochs or steps."""

from typing import Any

from lightning import Callback, Trainer

NEVER = "every_n_epochs=0 switches this callback off"


def look_every_n_steps(trainer: Trainer) -> int:
    """The number of steps after which to synchronize with the device and the other processes."""
    return trainer.log_every_n_steps or 20  # type: ignore[attr-defined]  # 0: nothing is logged


class EveryNEpochs(Callback):
    """Acts at the first validation after every `every_n_epochs` epochs.

    Args:
        every_n_epochs: how often; 0 for never.
    """

    def __init__(self, every_n_epochs: int) -> None:
        self.every_n_epochs = every_n_epochs
        self._next_epoch = every_n_epochs  # due at the first validation from this epoch on

    def is_due(self, trainer: Trainer) -> bool:
        """Whether to act in this validation. Call this once per validation, in all processes."""
        epoch = trainer.current_epoch + 1
        due = self.every_n_epochs > 0 and epoch >= self._next_epoch
        if trainer.sanity_checking or not due:
            return False
        self._next_epoch = epoch + self.every_n_epochs
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"next_epoch": self._next_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._next_epoch = state_dict["next_epoch"]
