"""Import the public names of a package only when they are accessed."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_attributes(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """Create a package's `__getattr__`, for names whose modules are slow to import.

    Importing one light module of the package then does not import its heavy ones.

    Args:
        package: the package's `__name__`.
        places: the submodule that each public name is in.
    """

    def getattr_(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{places[name]}"), name)

    return getattr_
