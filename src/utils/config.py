"""Build objects from configs, and describe objects as configs.

A config is a plain dict that names a class under `_target_`; the other keys are its arguments. To
be describable, an object has to store each constructor argument as an attribute of the same name.
"""

import inspect
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, TypeVar

from omegaconf import Container, OmegaConf

from src.utils.errors import UserError

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Resolve OmegaConf containers, and convert tuples and mappings to lists and dicts."""
    if isinstance(value, Container):
        return OmegaConf.to_container(value, resolve=True)
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def describe(obj: Any) -> dict[str, Any]:
    """The config from which `build` creates an object like `obj`; nested networks are included.

    Raises:
        TypeError: if the object does not store one of its constructor arguments, or if an argument
            is not a plain value that a checkpoint can store.
    """
    from torch import nn  # a command reads its settings before it loads torch

    cls = type(obj)
    names = list(inspect.signature(cls.__init__).parameters)[1:]
    missing = [name for name in names if not hasattr(obj, name)]
    if missing:
        raise TypeError(
            f"{cls.__qualname__} must store its constructor arguments {missing} as attributes"
        )
    values = {name: getattr(obj, name) for name in names}
    arguments = {
        name: describe(value) if isinstance(value, nn.Module) else to_plain(value)
        for name, value in values.items()
    }
    if not_plain := [name for name, value in arguments.items() if not _is_plain(value)]:
        raise TypeError(
            f"{cls.__qualname__} has values that a checkpoint cannot store in its arguments "
            f"{not_plain}: use numbers, strings, booleans, None, and lists or dicts of these"
        )
    return {"_target_": f"{cls.__module__}.{cls.__qualname__}", **arguments}


def build(
    config: Mapping[str, Any], base: type[T], *args: Any, allow: Sequence[str] | None = None
) -> T:
    """Create the object that a config describes.

    Args:
        config: `_target_` and arguments. Nested configs are passed on as dicts.
        base: the class must be a subclass of this.
        args: positional arguments, before those of the config.
        allow: modules or packages whose classes the config may name; None for all.

    Raises:
        UserError: if the target is missing, not allowed or not a subclass of `base`, or if its
            constructor does not accept the arguments.
    """
    arguments = to_plain(config)
    target = arguments.pop("_target_", None)
    if not isinstance(target, str) or "." not in target:
        raise UserError(f"a config needs a _target_ such as 'package.module.Class', not {target!r}")
    if allow is not None and not _within(target, allow):
        raise UserError(f"_target_ {target!r} is not among the allowed modules: {list(allow)}")
    module_name, _, class_name = target.rpartition(".")
    try:
        cls = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"_target_ {target!r} cannot be imported: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise UserError(f"_target_ {target!r} is not a {base.__name__}")
    if allow is not None and not _within(cls.__module__, allow):
        raise UserError(f"_target_ {target!r} is defined in {cls.__module__}, which is not allowed")
    try:
        inspect.signature(cls).bind(*args, **arguments)
    except TypeError as error:
        raise UserError(f"{target}: {error}") from error
    return cls(*args, **arguments)


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields that two configs both have and that differ, by their dotted names."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in [name for name in one if name in other and one[name] != other[name]]:
        if isinstance(one[name], Mapping) and isinstance(other[name], Mapping):
            below = differences(one[name], other[name])
            found.update({f"{name}.{key}": values for key, values in below.items()})
        else:
            found[name] = one[name], other[name]
    return found


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """The fields of a nested config by their dotted names; an empty dict is a value."""
    if not isinstance(value, dict) or not value:
        return {name: value}
    return {
        key: item
        for child, below in value.items()
        for key, item in flatten(below, f"{name}.{child}" if name else str(child)).items()
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or type(value) in (bool, int, float, str)


def _within(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)
