"""What every command does before it loads PyTorch: settings, paths, a first line.

This module imports nothing heavy, so that a mistyped setting is reported within a second or two.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from src.utils.arguments import for_hydra
from src.utils.errors import UserError, exit_on_user_error
from src.utils.overrides import check_overrides
from src.utils.quiet import quiet_libraries
from src.utils.threads import limit_spinning

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "src" / "configs"  # in an installed package
CONFIGS = SHIPPED if SHIPPED.is_dir() else ROOT / "configs"
NO_RUN = {"--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--resolve"}


def command(config_name: str) -> Callable[[Callable[[Any], Any]], Callable[..., Any]]:
    """Make a function of a config into a command that Hydra composes the config for.

    The function should import what is heavy itself, so that the settings are checked before.

    Args:
        config_name: the name of its config in `configs`.
    """
    prepare()

    def decorate(task: Callable[[Any], Any]) -> Callable[..., Any]:
        @functools.wraps(task)
        def main(cfg: Any = None) -> Any:
            import hydra

            wrapped = exit_on_user_error(_with_included(task))
            if cfg is not None:
                return wrapped(cfg)
            arguments = sys.argv
            sys.argv = [arguments[0], *for_hydra(arguments[1:])]
            try:
                _say_start(config_name)
                _check(config_name)
                run = hydra.main(
                    version_base="1.3", config_path=str(CONFIGS), config_name=config_name
                )
                return run(wrapped)()
            except KeyboardInterrupt:
                print("Stopped by Ctrl-C", file=sys.stderr)  # noqa: T201
                sys.exit(130)
            finally:
                sys.argv = arguments

        return main

    return decorate


def _with_included(task: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(task)
    def run(cfg: Any) -> Any:
        from src.utils.included import with_included_paths

        return task(with_included_paths(cfg))

    return run


def prepare() -> None:
    """Set what has to be set before PyTorch is loaded."""
    # relative to an installed package there is no place for data and results
    project = Path.cwd() if SHIPPED.is_dir() else ROOT
    os.environ.setdefault("PROJECT_ROOT", str(project))
    limit_spinning()
    quiet_libraries()


def _say_start(config_name: str) -> None:
    child = "LOCAL_RANK" in os.environ  # started by the first process
    if not child and not NO_RUN & {argument.partition("=")[0] for argument in sys.argv[1:]}:
        print(f"{config_name}: loading ...", file=sys.stderr, flush=True)  # noqa: T201


def _check(config_name: str) -> None:
    try:
        check_overrides(CONFIGS, config_name, sys.argv[1:])
    except UserError as error:
        print(error, file=sys.stderr)  # noqa: T201
        sys.exit(1)
