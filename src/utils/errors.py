"""Errors that a person can act on end a program with one message, not with a stack trace."""

import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from hydra.errors import InstantiationException
from omegaconf import MissingMandatoryValue

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_USER_ERRORS = (ValueError, FileNotFoundError, InstantiationException, MissingMandatoryValue)


def exit_on_user_error(main: Callable[P, R]) -> Callable[P, R]:
    """Let `main` end with exit code 1 and one message where input, not code, is at fault.

    Those are `ValueError` (which our own errors about data and checkpoints derive from), missing
    files, and configs that lack a value or from which an object cannot be made.
    HYDRA_FULL_ERROR=1 shows the trace.
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except _USER_ERRORS as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            log.error("%s\n(HYDRA_FULL_ERROR=1 shows where)", error)
            sys.exit(1)

    return wrapped
