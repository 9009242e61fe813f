"""Command lines as people type them, for Hydra."""

import re
from collections.abc import Sequence
from pathlib import Path

BARE_LIST = r"^(num_atoms)=([^'\"\[].*,.*)$"
_COMPOSITIONS = re.compile(r"(\+{0,2}compositions)=(.*)", re.DOTALL)
_LEFT_TO_HYDRA = re.compile(r"null|\$\{.*|(?:choice|range|glob|sort|shuffle|extend_list)\(.*")
# formulas that Hydra reads as text without quotes, which YAML and Python do as well
_PLAIN = re.compile(
    r"(?:\d+\*)?(?!(?:inf|nan|no|on|yes|true|false|null|off)$)[A-Z][A-Za-z0-9]*", re.IGNORECASE
)
# fields whose values are lists of paths
_PATH_LISTS = re.compile(r"(inputs|merge)=(.+)", re.DOTALL)
# fields whose values are paths, or parts of them
PATHS = re.compile(
    r"(\+{0,2}(?:[\w.]+\.)?(?:"
    r"\w+_dir|\w*ckpt_path|\w*_file|\w+_path|resume_from|init_from|input|output|reference"
    r"|test_reference|scale_reference|known|judged|phase_diagram|files|task_name|base_url)|hydra\.(?:run|sweep)\.dir)=(.+)",
    re.DOTALL,
)


def for_hydra(arguments: Sequence[str]) -> list[str]:
    """Arguments in the form that Hydra needs.

    Formulas in `compositions=NaCl,InF` get brackets, since Hydra would take a bare list for a
    sweep, and quotes where they need some: Hydra would take InF and NaN for numbers, and would not
    read Ca(OH)2. A bare list `num_atoms=8,12` gets brackets, and so does one of paths,
    `inputs=one,other`, whose paths get quotes.
    `conditions.NAME=VALUE` is allowed to add a field, since each model has its own conditions. A
    path that Hydra's grammar would take for something else, because it contains `=`, a comma or the
    like, gets quotes. With `-m`, commas in paths separate the values of a sweep.
    """
    listed = [re.sub(BARE_LIST, r"\1=[\2]", _with_quotes(argument)) for argument in arguments]
    added = [re.sub(r"^conditions\.", "++conditions.", argument) for argument in listed]
    sweeps = "-m" in arguments or "--multirun" in arguments
    return [_quoted(argument, sweeps) for argument in added]


def _with_quotes(argument: str) -> str:
    """`compositions` with each formula, or the path of a file, in quotes."""
    found = _COMPOSITIONS.fullmatch(argument)
    if found is None or not (value := found[2].strip()) or _LEFT_TO_HYDRA.fullmatch(value):
        return argument
    if Path(value).expanduser().is_file():  # whose name may have commas
        return f"{found[1]}={_quote(value)}"
    is_list = value.startswith("[") and value.endswith("]")
    items = _split(value[1:-1] if is_list else value)
    if any(item[:1] in ("'", '"') for item in items) and not is_list and len(items) == 1:
        return argument
    quoted = ",".join(map(_quote, items))
    return f"{found[1]}=[{quoted}]" if is_list or len(items) > 1 else f"{found[1]}={quoted}"


def _split(text: str) -> list[str]:
    """The items between commas that are not in quotes."""
    items = re.findall(r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^,'"]|['"])+""", text)
    return [item.strip() for item in items if item.strip()]


def _quote(text: str) -> str:
    if text[0] in ("'", '"') or _PLAIN.fullmatch(text):
        return text
    escaped = re.sub(r"(\\*)'", r"\1\1\'", text)
    if trailing := re.search(r"\\+$", escaped):
        escaped += trailing[0]
    return f"'{escaped}'"


def _quoted(argument: str, sweeps: bool) -> str:
    if (found := _PATH_LISTS.fullmatch(argument)) is not None:
        return f"{found[1]}={_path_list(found[2])}"
    found = PATHS.fullmatch(argument)
    if found is None or _is_fine(argument, found[2], sweeps):
        return argument
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), found[2])
    return f"{found[1]}='{escaped}'"


def _path_list(value: str) -> str:
    """A list of paths with each in quotes, also one without brackets."""
    is_list = value.startswith("[") and value.endswith("]")
    items = _split(value[1:-1] if is_list else value)
    if value.startswith("${") or value == "null" or not (is_list or len(items) > 1):
        return value
    return f"[{','.join(map(_quote, items))}]"


def _is_fine(argument: str, value: str, sweeps: bool) -> bool:
    """Whether Hydra understands the value of a path as it is."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import QuotedString
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    if override.is_sweep_override():
        return sweeps
    parsed = override._value
    return parsed is None or isinstance(parsed, QuotedString) or parsed == value
