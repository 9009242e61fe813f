"""Loggers that need more than their constructor."""

import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.loggers import WandbLogger


def wandb_logger(**kwargs: Any) -> WandbLogger:
    """A `WandbLogger` that never asks a question: without an API key it logs offline.

    `WANDB_MODE`, where set, decides instead. Arguments are those of `WandbLogger`.
    """
    kwargs.setdefault("offline", "WANDB_MODE" not in os.environ and not _has_wandb_key())
    if kwargs["offline"]:
        # Lightning only sets WANDB_MODE, which wandb has read when it looked for the key
        kwargs.setdefault("mode", "offline")
    return WandbLogger(**kwargs)


def _has_wandb_key() -> bool:
    import wandb  # here, since it takes a while

    if os.environ.get("WANDB_API_KEY"):
        return True
    if "prompt" in inspect.signature(wandb.login).parameters:
        return wandb.login(prompt=False, verify=False)
    return bool(wandb.api.api_key)  # of versions that have no other way; later ones warn of it


@contextmanager
def own_wandb_run() -> Iterator[None]:
    """End the run of Weights & Biases that the block begins, with the block.

    A `WandbLogger` takes over a run that is still open, so that all trials of a search, and all
    jobs of a sweep in one process, would otherwise be logged as one. A run that was open before
    the block is the caller's, and stays open.
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
    # not imported for this, since it takes a while and most runs do without it
    return getattr(sys.modules.get("wandb"), "run", None)
