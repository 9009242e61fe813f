"""Command lines as people type them, for Hydra."""

import re
from collections.abc import Sequence

BARE_LIST = r"^(compositions|num_atoms)=([^'\"\[].*,.*)$"
# fields whose values are paths
PATHS = re.compile(
    r"(\+{0,2}(?:[\w.]+\.)?(?:"
    r"\w+_dir|\w*ckpt_path|\w*_file|\w+_path|resume_from|init_from|input|output|reference"
    r"|test_reference|scale_reference|base_url|compositions)|hydra\.(?:run|sweep)\.dir)=(.+)",
    re.DOTALL,
)


def for_hydra(arguments: Sequence[str]) -> list[str]:
    """Arguments in the form that Hydra needs.

    A bare list, as in `compositions=NaCl,SrTiO3`, gets brackets: Hydra would take it for a sweep.
    `conditions.NAME=VALUE` is allowed to add a field, since each model has its own conditions. A
    path that Hydra's grammar would take for something else, because it contains `=`, a comma or the
    like, gets quotes. With `-m`, commas in paths separate the values of a sweep.
    """
    listed = [re.sub(BARE_LIST, r"\1=[\2]", argument) for argument in arguments]
    added = [re.sub(r"^conditions\.", "++conditions.", argument) for argument in listed]
    sweeps = "-m" in arguments or "--multirun" in arguments
    return [_quoted(argument, sweeps) for argument in added]


def _quoted(argument: str, sweeps: bool) -> str:
    found = PATHS.fullmatch(argument)
    if found is None or _is_fine(argument, found[2], sweeps):
        return argument
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), found[2])
    return f"{found[1]}='{escaped}'"


def _is_fine(argument: str, value: str, sweeps: bool) -> bool:
    """Whether Hydra understands the value of a path as it is."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import QuotedString
    from hydra.errors import HydraException

    if value[0] == "[" and "compositions=" in argument:  # a list of formulas
        return True
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    if override.is_sweep_override():
        return sweeps
    parsed = override._value
    return parsed is None or isinstance(parsed, QuotedString) or parsed == value
