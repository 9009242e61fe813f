"""Find the data and models that come with the project where it is installed as a package.

In a checkout they are in its folder `data`. An installed package has copies of them, which a path
such as `data/prototypes/vae.ckpt` leads to in any folder that has no such file.
"""

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

PACKAGE = Path(__file__).resolve().parents[1]
INCLUDED = PACKAGE / "included"  # only in an installed package


def find_included(path: str | Path) -> Path:
    """The path itself, or that of the copy in the package if there is none in the project folder.

    Args:
        path: absolute, or relative to the current folder; `~` is expanded.
    """
    path = Path(path).expanduser()
    if not INCLUDED.is_dir() or path.exists():
        return path
    project = Path(os.environ.get("PROJECT_ROOT", ".")).absolute()
    data = project / "data"
    absolute = path.absolute()
    if not absolute.is_relative_to(data) or absolute == data:
        return path
    copy = INCLUDED / absolute.relative_to(data)
    return copy if copy.exists() else path


def with_included_paths(cfg: DictConfig) -> DictConfig:
    """A config whose paths to data and models that come with the project lead to the copies."""
    if not INCLUDED.is_dir():
        return cfg
    cfg = cfg.copy()
    _replace_paths(cfg)
    return cfg


def _replace_paths(node: DictConfig | ListConfig) -> None:
    keys: list[Any] = list(node) if isinstance(node, DictConfig) else list(range(len(node)))
    for key in keys:
        try:
            value = None if OmegaConf.is_missing(node, key) else node[key]
        except OmegaConfBaseException:  # set by whoever needs it
            continue
        if isinstance(value, (DictConfig, ListConfig)):
            _replace_paths(value)
        elif isinstance(value, str):
            found = find_included(value)
            if found.is_relative_to(INCLUDED):
                node[key] = str(found)
