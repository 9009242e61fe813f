"""Loggers that need more than their constructor."""

import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.loggers import WandbLogger


def wandb_logger(**kwargs: Any) -> WandbLogger:
    """A `WandbLogger` that never prompts: without an API key, it logs offline.

    `WANDB_MODE` takes precedence if it is set. The arguments are those of `WandbLogger`.
    """
    kwargs.setdefault("offline", "WANDB_MODE" not in os.environ and not _has_wandb_key())
    if kwargs["offline"]:
        # Lightning only sets WANDB_MODE, but wandb already read it when it looked for the key
        kwargs.setdefault("mode", "offline")
    return WandbLogger(**kwargs)


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
