"""Errors that a person can act on end a program with one message, not with a stack trace."""

import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import MissingMandatoryValue

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_USER_ERRORS = (
    ValueError,
    OSError,
    InstantiationException,
    MissingMandatoryValue,
    MisconfigurationException,
)


def exit_on_user_error(main: Callable[P, R]) -> Callable[P, R]:
    """Let `main` end with exit code 1 and one message where input, not code, is at fault.

    Those are `ValueError` (which our own errors about data and checkpoints derive from), `OSError`
    (a missing file, a full disk), and configs that lack a value or from which an object cannot be
    made. HYDRA_FULL_ERROR=1 shows the trace.

    A job of a sweep (`-m`) gives the message and raises the error, so that Hydra notes the job as
    failed and goes on with the next.
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except _USER_ERRORS as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            log.error("%s\n(HYDRA_FULL_ERROR=1 shows where)", error)
            if in_multirun():
                raise
            sys.exit(1)

    return wrapped


def in_multirun() -> bool:
    """Whether this is a job of a sweep of Hydra (`-m`)."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
