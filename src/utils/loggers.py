"""Loggers that need more than their constructor."""

import os
from typing import Any

import wandb
from lightning.pytorch.loggers import WandbLogger


def wandb_logger(**kwargs: Any) -> WandbLogger:
    """A `WandbLogger` that never asks a question: without an API key it logs offline.

    `WANDB_MODE`, where set, decides instead. Arguments are those of `WandbLogger`.
    """
    has_key = bool(os.environ.get("WANDB_API_KEY") or wandb.api.api_key)
    kwargs.setdefault("offline", not has_key and "WANDB_MODE" not in os.environ)
    if kwargs["offline"]:
        # Lightning only sets WANDB_MODE, which wandb has read when it looked for the key
        kwargs.setdefault("mode", "offline")
    return WandbLogger(**kwargs)
