"""Check the overrides of a command line, with suggestions, before Hydra applies them."""

import os
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.utils.config import flatten
from src.utils.errors import UserError

# whose default is a number or true, and which may also be a word or a list
MAY_BE_WORDS = ("vae_module.translate", "trainer.devices", "trainer.deterministic")
# to which fields may be added that no config has
OPEN = ("conditions", "hydra", "hparams_search.space")
NAMED = {int: "an integer", float: "a number", bool: "true or false"}


def check_overrides(configs: Path, config_name: str, arguments: Sequence[str]) -> None:
    """Check the arguments of a command.

    Args:
        configs: the folder of the configs.
        config_name: that of the command.
        arguments: in Hydra's grammar, without the name of the program.

    Raises:
        UserError: for a field or choice that does not exist, with those that are similar; for a
            value of another type; for an added field that nothing reads; for a missing value.
    """
    from hydra import compose, initialize_config_dir
    from hydra._internal.utils import get_args_parser
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    if os.environ.get("HYDRA_FULL_ERROR") == "1" or GlobalHydra.instance().is_initialized():
        return
    given = get_args_parser().parse_args(list(arguments))
    if given.config_name or given.config_dir or given.config_path or given.experimental_rerun:
        return
    choices, fields = _parsed(configs, given.overrides)
    with initialize_config_dir(str(configs), version_base="1.3", job_name=config_name):
        try:
            cfg = compose(config_name, overrides=choices)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_explain(error, configs, config_name)) from error
    _check_added(configs, cfg, choices)
    for key, value, text in fields:
        _check_field(configs, cfg, key, value, text)
    wants_no_run = given.help or given.hydra_help or given.cfg or given.info
    content = flatten(OmegaConf.to_container(cfg))
    missing = [key for key, value in content.items() if isinstance(value, str) and value == "???"]
    if missing and not wants_no_run:
        raise UserError(
            "; ".join(f"{key} is not set: add {key}=VALUE to the command" for key in missing)
        )


def _parsed(
    configs: Path, overrides: Sequence[str]
) -> tuple[list[str], list[tuple[str, Any, str]]]:
    """Overrides that choose, add or remove something, and those that set a field.

    Returns:
        The former as they are (of a sweep, the first choice), and of the latter the key, the value
        and the text, for each value of a sweep.

    Raises:
        UserError: for one that is not in Hydra's grammar.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    choices: list[str] = []
    fields: list[tuple[str, Any, str]] = []
    parser = OverridesParser.create()
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"{text} cannot be read: {reason}. Write KEY=VALUE, and quote a value with special "
                "characters twice, as in \"KEY='VALUE'\""
            ) from error
        key, prefix = override.key_or_group, text[: len(text) - len(text.lstrip("+~"))]
        try:
            values = list(override.sweep_string_iterator()) if override.is_sweep_override() else []
        except (HydraException, NotImplementedError):  # an interval, of an optimizing sweeper
            continue
        single = [f"{prefix}{override.get_key_element().lstrip('+~')}={value}" for value in values]
        each = single or [text]
        is_choice = (configs / key).is_dir() or key.startswith("hydra") or "/" in key
        if prefix or is_choice:
            choices.append(each[0])
            continue
        for one in each:
            parsed = parser.parse_override(one)
            fields.append((key, parsed.value(), one))
    return choices, fields


def _explain(error: Exception, configs: Path, config_name: str) -> str:
    """Hydra's message about a choice that does not exist, with those that there are."""
    text = str(error)
    if found := re.search(r"Could not find '([^']+)'", text):
        group, _, option = found[1].rpartition("/")
        while group and not (configs / group).is_dir():
            group, _, first = group.rpartition("/")
            option = f"{first}/{option}"
        if group:
            return f"there is no {group}={option}: {_choose(option, _options(configs / group))}"
    if found := re.search(r"Could not override '([^']+)'", text):
        similar = get_close_matches(found[1], _groups(configs), 3, 0.6)
        return f"there is no {found[1]} in {config_name}{_did_you_mean(similar)}"
    return text


def _groups(configs: Path) -> list[str]:
    """The config groups, each a folder of files."""
    return sorted({str(path.parent.relative_to(configs)) for path in configs.rglob("*/*.yaml")})


def _options(folder: Path) -> list[str]:
    files = sorted(folder.rglob("*.yaml"))
    return [str(file.relative_to(folder).with_suffix("")) for file in files]


def _choose(given: str, options: Sequence[str]) -> str:
    within = [option for option in options if option.startswith(f"{given}/")]
    many = len(options) > 8
    similar = within or (get_close_matches(given, options, 4, 0.5) if many else [])
    return f"choose {', '.join(similar)}" if similar else f"choose one of {', '.join(options)}"


def _did_you_mean(similar: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(similar)}?" if similar else ""


def _check_field(configs: Path, cfg: DictConfig, key: str, value: Any, text: str) -> None:
    """Check that a field exists and that a value suits it, then set it."""
    parts = key.split(".")
    node: Any = cfg
    for i, part in enumerate(parts):
        if not isinstance(node, DictConfig) or part not in list(node):
            where = ".".join(parts[:i])
            hint = _did_you_mean(_similar(configs, cfg, key))
            if not hint and isinstance(node, DictConfig) and "_target_" in node:
                hint = f"; an argument that the config does not list is added with +{text}"
            raise UserError(
                f"there is no setting {part if where else key}{f' in {where}' if where else ''}"
                f"{hint}"
            )
        if OmegaConf.is_interpolation(node, part) or OmegaConf.is_missing(node, part):
            node = None  # of unknown type
        else:
            node = node[part]
    if key not in MAY_BE_WORDS and not _suits(node, value):
        raise UserError(f"{text}: {key} must be {NAMED[type(node)]}, such as {_as_text(node)}")
    OmegaConf.update(cfg, key, value)


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _suits(default: Any, value: Any) -> bool:
    """Whether a value has the type of the default; words that refer to other fields are let in."""
    if value is None or (isinstance(value, str) and "${" in value):
        return True
    if isinstance(default, bool):
        return isinstance(value, bool) or value in (0, 1)
    if isinstance(default, int):
        return isinstance(value, int)
    if isinstance(default, float):
        return isinstance(value, (int, float))
    return True


def _similar(configs: Path, cfg: DictConfig, key: str) -> list[str]:
    """Fields and groups with similar names, or fields of that name elsewhere."""
    known = [name for name in flatten(OmegaConf.to_container(cfg)) if name != key]
    known += _groups(configs)
    same_end = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    return get_close_matches(key, known, 3, 0.75) or same_end[:4]


def _check_added(configs: Path, cfg: DictConfig, choices: Sequence[str]) -> None:
    """Check that something reads each field that was added with `+`."""
    for text in choices:
        key = text.partition("=")[0]
        if not key.startswith("+") or "/" in key or "@" in key:
            continue
        key = key.lstrip("+")
        if any(key == name or key.startswith(f"{name}.") for name in OPEN):
            continue
        parents = list(_parents(cfg, key))
        is_object = any("_target_" in node for node in parents[1:])
        if parents and not is_object and _is_new(cfg, key, text):
            raise UserError(
                f"{text}: nothing reads a setting {key}{_did_you_mean(_similar(configs, cfg, key))}"
            )


def _parents(cfg: DictConfig, key: str) -> Iterator[DictConfig]:
    node: Any = cfg
    for part in [*key.split("."), ""]:
        if not isinstance(node, DictConfig):
            return
        yield node
        node = node.get(part) if part and not OmegaConf.is_interpolation(node, part) else None


def _is_new(cfg: DictConfig, key: str, text: str) -> bool:
    """Whether an added field is none that the config has anyway; `++` sets those too."""
    return not text.startswith("++") or OmegaConf.select(cfg, key, default=None) is None
