"""Compose configs faster: Hydra puts the files of a selection together once for all tests."""

import copy
import dataclasses
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hydra import version
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hydra._internal.defaults_list import DefaultsList
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SHIPPED = (("file", str(CONFIGS)), ("pkg", "hydra.conf"))  # no test changes a file there


def is_shipped(source: Any) -> bool:
    return (source.scheme(), source.path) in SHIPPED or source.scheme() == "structured"


def is_selection(override: Override, repo: IConfigRepository) -> bool:
    """Whether it selects a file of a config group; the others set a value."""
    return repo.group_exists(override.key_or_group) and not isinstance(override.value(), dict)


@contextmanager
def shared_compositions() -> Iterator[None]:
    """Let Hydra read and merge the shipped files once for each selection of them.

    That takes most of the time of composing, which hundreds of tests do. Values are set afterwards
    in a copy, by Hydra itself and for each test anew. No error is kept, and nothing where a folder
    of a test is in the search path.
    """
    with pytest.MonkeyPatch.context() as patch:
        _keep_files(patch)
        _keep_compositions(patch)
        yield


def _keep_files(patch: pytest.MonkeyPatch) -> None:
    load = ConfigRepository.load_config
    files: dict[str, ConfigResult | None] = {}

    def load_once(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        if not all(map(is_shipped, self.get_sources())):
            return load(self, config_path)
        if config_path not in files:
            files[config_path] = load(self, config_path)
        return copy.deepcopy(files[config_path])

    patch.setattr(ConfigRepository, "load_config", load_once)


def _keep_compositions(patch: pytest.MonkeyPatch) -> None:
    list_files = config_loader_impl.create_defaults_list
    merge = ConfigLoaderImpl._compose_config_from_defaults_list
    lists: dict[Hashable, DefaultsList] = {}
    merged: dict[int, DictConfig | None] = {}  # by the identity of what `lists` keeps

    def list_once(
        repo: IConfigRepository, config_name: str | None, overrides_list: list[Override], **options
    ) -> DefaultsList:
        if not all(map(is_shipped, repo.get_sources())):
            return list_files(repo, config_name, overrides_list, **options)
        given = [o for o in overrides_list if not o.is_sweep_override()]
        selected = {id(o): o.input_line for o in given if is_selection(o, repo)}
        key = (version.getbase(), config_name, *selected.values(), *options.values())
        if key not in lists:
            lists[key] = list_files(repo, config_name, overrides_list, **options)
            merged[id(lists[key].defaults)] = None
        values = [o for o in given if id(o) not in selected]
        return dataclasses.replace(lists[key], config_overrides=values)

    def merge_once(self: ConfigLoaderImpl, defaults: list, repo: IConfigRepository) -> DictConfig:
        if id(defaults) not in merged:
            return merge(self, defaults, repo)
        if merged[id(defaults)] is None:
            merged[id(defaults)] = merge(self, defaults, repo)
        return copy.deepcopy(merged[id(defaults)])

    patch.setattr(config_loader_impl, "create_defaults_list", list_once)
    patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", merge_once)
