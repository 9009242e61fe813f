"""The configuration reference: each field of each config with its default and its comment.

`python scripts/config_reference.py` prints it; building the documentation turns it into a page. The
comment of a field is read from the end of its line and from the lines above it.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import yaml

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

INTRODUCTION = """\
# Configuration reference

This page lists every field of every file in `configs`. It is generated from these files. The name
of a field is what you write on the command line, for example `data.batch_size=64`. Fields marked
**required** have no default. `${...}` is the value of another field. A row marked *group* selects a
file: `data=mp_20` selects `configs/data/mp_20.yaml` for the group `data`, and the section of that
name lists its fields. Experiments and `debug` list only the fields that they change.

`python src/train_vae.py --cfg job` prints the config that a command line results in, and
`--info defaults-tree` prints the files that it is composed from.
"""

GROUPS = {
    "": "Commands",
    "data": "Data",
    "vae_module": "VAE module",
    "vae_module/encoder": "Encoder",
    "vae_module/decoder": "Decoder",
    "vae_module/optimizer": "Optimizer",
    "ldm_module": "LDM module",
    "ldm_module/denoiser": "Denoiser",
    "ldm_module/optimizer": "Optimizer of the LDM",
    "ldm_module/scheduler": "Learning-rate schedule of the LDM",
    "ldm_size": "Size of the LDM",
    "ldm_debug": "Debugging the LDM",
    "scheduler": "Learning-rate schedule",
    "size": "Model size",
    "trainer": "Trainer",
    "callbacks": "Callbacks",
    "logger": "Loggers",
    "hparams_search": "Hyperparameter search",
    "paths": "Paths",
    "hydra": "Hydra runs and sweeps",
    "hydra/launcher": "Launchers of sweeps",
    "hydra/job_logging": "Logging",
    "debug": "Debugging",
    "experiment": "Experiments",
}
"""Headings of the groups, in order; groups that are not listed here come last."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table.

    Attributes:
        name: name of the field or group, as on the command line.
        value: the value as written in the file; empty for a field that only contains other fields.
        comment: the comment in the file.
        is_group: whether the value selects a file.
    """

    name: str
    value: str
    comment: str
    is_group: bool = False


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The content of a config file, in order.

    Attributes:
        about: the comments at the top and at the end.
        bases: files of the same group that this one extends.
        rows: the groups that it selects, then its fields.
    """

    about: str
    bases: list[str]
    rows: list[Row]


def read_config(path: Path, prefix: str) -> ConfigFile:
    """Read the fields of a file and their comments.

    Args:
        path: a YAML file.
        prefix: prefix of the names of its fields, such as `data.`; a `# @package` line in the file
            replaces it.
    """
    text = path.read_text()
    lines = text.splitlines()
    if package := re.search(r"^# @package (\S+)", text, flags=re.MULTILINE):
        prefix = "" if package[1] == "_global_" else f"{package[1]}."
    top = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    bottom = next((i for i, line in enumerate(lines[::-1]) if not _is_comment(line)), 0)
    outside = lines[:top] + (lines[-bottom:] if bottom and top < len(lines) else [])
    about = _join(line for line in outside if "@package" not in line)
    root = yaml.compose(text)
    rows: list[Row] = []
    bases: list[str] = []
    if isinstance(root, yaml.MappingNode):
        for key, value in root.value:
            if key.value == "defaults":
                bases += [item.value for item in value.value if _is_base(item)]
                rows += _choices(value, lines, top)
        fields = [item for item in root.value if item[0].value != "defaults"]
        rows += _fields(fields, text, lines, top, prefix)
    return ConfigFile(about, bases, rows)


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith("#")


def _is_base(item: yaml.Node) -> bool:
    return isinstance(item, yaml.ScalarNode) and item.value != "_self_"


def _choices(defaults: yaml.Node, lines: list[str], top: int) -> Iterator[Row]:
    for item in defaults.value:
        if isinstance(item, yaml.MappingNode):
            ((key, value),) = item.value
            name = key.value.removeprefix("override ").removeprefix("/")
            yield Row(name, value.value, _comment(item, value, lines, top), is_group=True)


def _fields(
    items: list[tuple[yaml.Node, yaml.Node]], text: str, lines: list[str], top: int, prefix: str
) -> Iterator[Row]:
    for key, value in items:
        name = prefix + key.value
        if isinstance(value, yaml.MappingNode) and value.value and not value.flow_style:
            if comment := _comment(key, key, lines, top):
                yield Row(name, "", comment)
            yield from _fields(value.value, text, lines, top, f"{name}.")
        else:
            in_block = isinstance(value, yaml.SequenceNode) and not value.flow_style
            written = text[value.start_mark.index : value.end_mark.index]
            value_text = "\n".join(line.strip() for line in written.splitlines())
            end = key if in_block else value
            yield Row(name, value_text.strip(), _comment(key, end, lines, top))


def _comment(start: yaml.Node, end: yaml.Node, lines: list[str], top: int) -> str:
    """The comment lines directly above a field, joined with the comment at the end of its line."""
    row = start.start_mark.line
    first = row
    while first > top and _is_comment(lines[first - 1]):
        first -= 1
    behind = lines[end.end_mark.line][end.end_mark.column :].lstrip(" :")
    return _join([*lines[first:row], *([behind] if behind.startswith("#") else [])])


def _join(comments: Iterable[str]) -> str:
    return " ".join(comment.strip().removeprefix("#").strip() for comment in comments).strip()


def reference(configs: Path = CONFIGS) -> str:
    """The page as Markdown, with HTML tables."""
    by_group: dict[str, list[Path]] = {group: [] for group in GROUPS}
    for path in sorted(configs.rglob("*.yaml")):
        group = path.relative_to(configs).parent.as_posix()
        if group != "." and group.split("/")[0] == "experiment":
            group = "experiment"
        by_group.setdefault("" if group == "." else group, []).append(path)
    parts = [INTRODUCTION]
    for group, paths in by_group.items():
        if paths:
            parts.append(f"## {GROUPS.get(group, group)}\n")
        parts += [_section(path, group, configs / group) for path in paths]
    return "\n".join(parts)


def _section(path: Path, group: str, folder: Path) -> str:
    choice = path.relative_to(folder).with_suffix("").as_posix()
    prefix = f"{group.replace('/', '.')}." if group else ""
    config = read_config(path, prefix)
    title = f"{group}={choice}" if group else path.name
    text = [f"### `{title}`\n"]
    if config.about:
        about = _html(config.about)
        is_command = about.startswith("python ")
        text.append(f"<p>{f'<code>{about}</code>' if is_command else about}</p>\n")
    if config.bases:
        bases = ", ".join(f"<code>{escape(base)}</code>" for base in config.bases)
        text.append(f"<p>Extends {bases} of the same group.</p>\n")
    if config.rows:
        text.append(_table(config.rows))
    return "\n".join(text)


def _table(rows: list[Row]) -> str:
    cells = ["<table>", "<thead><tr><th>field</th><th>default</th><th></th></tr></thead>"]
    cells.append("<tbody>")
    for row in rows:
        value = "<br>".join(f"<code>{escape(line)}</code>" for line in row.value.splitlines())
        value = "<strong>required</strong>" if row.value == "???" else value
        comment = " ".join(filter(None, ["<em>group</em>" * row.is_group, _html(row.comment)]))
        # long names may wrap at their dots
        name = escape(row.name).replace(".", ".<wbr>")
        cells.append(f"<tr><td><code>{name}</code></td><td>{value}</td><td>{comment}</td></tr>")
    return "\n".join([*cells, "</tbody>", "</table>", ""])


def _html(comment: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(comment, quote=False))


if __name__ == "__main__":
    sys.stdout.write(reference())
