"""Errors that the user can fix: they end a program with one message instead of a stack trace.

This module imports nothing heavy, because worker processes that have to start quickly import it.
"""

import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class UserError(ValueError):
    """User input cannot be used; the message names it and says what to do.

    The base class of all errors in this project about input: data, checkpoints, configs, output
    paths. Bugs raise other errors.
    """


def exit_on_user_error(main: Callable[P, R]) -> Callable[P, R]:
    """Make `main` exit with code 1 and a single message for errors that the user can fix.

    These are `UserError`, `OSError` (a missing file, a full disk), and configs that lack a value or
    from which an object cannot be created. Anything else is a bug and is shown with its stack
    trace. HYDRA_FULL_ERROR=1 shows the stack trace of all errors.

    In a sweep job (`-m`), the message is logged and the error is raised again, so that Hydra
    records the job as failed and continues with the next.
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except Exception as error:
            if not is_user_error(error) or os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            log.error("%s\n(set HYDRA_FULL_ERROR=1 to see the stack trace)", _message(error))
            if in_multirun():
                raise
            sys.exit(1)

    return wrapped


def _message(error: Exception) -> str:
    from omegaconf import MissingMandatoryValue

    if isinstance(error, MissingMandatoryValue) and error.full_key:
        return f"{error.full_key} is not set: add {error.full_key}=VALUE to the command"
    return str(error)


def is_user_error(error: BaseException) -> bool:
    """Whether an error is about user input."""
    from hydra.errors import InstantiationException
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, InstantiationException):
        # raised by a constructor that rejects its arguments, which come from the config
        refusals = (ValueError, TypeError, ImportError)
        cause = error.__cause__
        return cause is None or isinstance(cause, refusals) or is_user_error(cause)
    return isinstance(
        error, (UserError, OSError, OmegaConfBaseException, MisconfigurationException)
    )


def in_multirun() -> bool:
    """Whether this is a job of a Hydra sweep (`-m`)."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
