"""Loggers of runs that may be continued: one run there for each run here."""

import inspect
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch.loggers import TensorBoardLogger as LightningTensorBoardLogger
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.utilities import rank_zero_only

from src.utils.output import new_file

WANDB_RUN = "wandb_run_id"  # in the folder of a run: the ID of its Weights & Biases run


@runtime_checkable
class ContinuesFrom(Protocol):
    """A logger to be told where a run begins: at step 0, or at that of a checkpoint."""

    def continue_from(self, step: int) -> None:
        """Keep what was logged in the first `step` steps. Called before anything is logged."""
        ...


class WandbLogger(LightningWandbLogger):
    """Lightning's `WandbLogger`, with one Weights & Biases run for each run, also if continued.

    The ID of the Weights & Biases run is kept in `wandb_run_id` in `save_dir`. A new run in the
    same folder gets a new one. An ID that is given, as an argument or by WANDB_RUN_ID (which
    `wandb agent` sets), takes precedence.
    """

    @rank_zero_only
    def continue_from(self, step: int) -> None:
        if self._wandb_init.get("id") or os.environ.get("WANDB_RUN_ID"):
            return
        file = Path(self._save_dir or ".") / WANDB_RUN
        if step == 0 or not file.is_file():
            with new_file(file, overwrite=True) as path:
                path.write_text(secrets.token_hex(4) + "\n")
        self._id = file.read_text().strip()
        self._wandb_init.update(id=self._id, resume="allow")


class TensorBoardLogger(LightningTensorBoardLogger):
    """Lightning's `TensorBoardLogger`, for runs that are continued from a checkpoint.

    TensorBoard then drops what was logged after the checkpoint, since these steps are repeated,
    and, if a new run starts in a folder, all that an earlier one logged there.
    """

    def continue_from(self, step: int) -> None:
        if any(Path(self.log_dir).glob("events.out.tfevents.*")):
            self._kwargs["purge_step"] = step


def wandb_logger(**kwargs: Any) -> WandbLogger:
    """An `WandbLogger` that never prompts: without an API key, it logs offline.

    `WANDB_MODE` takes precedence if it is set. The arguments are those of `WandbLogger`.
    """
    kwargs.setdefault("offline", "WANDB_MODE" not in os.environ and not _has_wandb_key())
    if kwargs["offline"]:
        # Lightning only sets WANDB_MODE, but wandb already read it when it looked for the key
        kwargs.setdefault("mode", "offline")
    logger = WandbLogger(**kwargs)
    if not kwargs.get("anonymous"):
        logger._wandb_init.pop("anonymous", None)  # wandb warns even of None
    return logger


def _has_wandb_key() -> bool:
    import wandb  # slow to import

    if os.environ.get("WANDB_API_KEY"):
        return True
    if "prompt" in inspect.signature(wandb.login).parameters:
        return wandb.login(prompt=False, verify=False)
    return bool(wandb.api.api_key)  # only in old versions without another way; later ones warn


@contextmanager
def own_wandb_run() -> Iterator[None]:
    """When the block ends, finish the Weights & Biases run that was started in it.

    A `WandbLogger` reuses a run that is still open. Otherwise, all trials of a search, or all jobs
    of a sweep in one process, would be logged as a single run. A run that was open before the block
    stays open.
    """
    before = _open_wandb_run()
    failed = True
    try:
        yield
        failed = False
    finally:
        run = _open_wandb_run()
        if run is not None and run is not before:
            run.finish(exit_code=int(failed))


def _open_wandb_run() -> Any:
    # not imported for this, because that is slow and most runs do not use it
    return getattr(sys.modules.get("wandb"), "run", None)
