"""Find and load the interatomic potential that judges: CHGNet, SevenNet, or any ASE calculator.

Nothing is downloaded: the weights of CHGNet and SevenNet are inside their packages.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.utils.errors import UserError

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

CHGNET_WEIGHTS = "0.3.0"
SEVENN_WEIGHTS = "7net-0"


@dataclass(frozen=True, slots=True)
class Potential:
    """What identifies a potential. Energies of different ones must never be mixed.

    Attributes:
        name: as the user wrote it: `chgnet`, `sevenn`, or the dotted name of a calculator.
        label: a short name with the version of the weights, for names of figures.
        title: a name to read.
        version: the package and its version, or, for a calculator in a file of one's own, the
            first digits of the checksum of this file.
    """

    name: str
    label: str
    title: str
    version: str


def find_potential(name: str) -> Potential:
    """Look up a potential without loading it.

    Args:
        name: `chgnet`, `sevenn`, or the dotted name of a class or function that returns an ASE
            calculator when it is called without arguments, such as `ase.calculators.emt.EMT`.

    Raises:
        UserError: if there is no such potential, or its package is not installed.
    """
    if name == "chgnet":
        version = _package_version("chgnet", "stability")
        return Potential(name, f"chgnet_{CHGNET_WEIGHTS}", f"CHGNet {CHGNET_WEIGHTS}", version)
    if name == "sevenn":
        version = _package_version("sevenn", "sevennet")
        return Potential(name, "sevennet_0", "SevenNet-0 (11 July 2024)", version)
    maker = _find_maker(name)
    label = re.sub(r"\W+", "_", name.rpartition(".")[2]).lower()
    return Potential(name, label, name, _version_of(maker))


def open_calculator(name: str) -> Calculator:
    """Load a potential for the CPU, as an ASE calculator.

    Raises:
        UserError: if it cannot be found or loaded.
    """
    find_potential(name)
    # CHGNet prints its version, and libraries warn of one another
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "chgnet":
            from chgnet.model import CHGNet, CHGNetCalculator

            model = CHGNet.load(model_name=CHGNET_WEIGHTS, use_device="cpu", verbose=False)
            return CHGNetCalculator(model, use_device="cpu", on_isolated_atoms="error")
        if name == "sevenn":
            from sevenn.calculator import SevenNetCalculator

            return SevenNetCalculator(SEVENN_WEIGHTS, device="cpu")
        try:
            calculator = _find_maker(name)()
        except Exception as error:
            raise UserError(
                f"potential={name} cannot be made without arguments ({error}): name a function "
                "that takes none and returns an ASE calculator"
            ) from error
    if not hasattr(calculator, "get_property"):
        kind = type(calculator).__name__
        raise UserError(f"potential={name} gives a {kind}, which is not an ASE calculator")
    return calculator


def _package_version(package: str, extra: str) -> str:
    if find_spec(package) is None:
        raise UserError(f"potential={package} needs the extra {extra}: pip install -e '.[{extra}]'")
    return f"{package} {importlib.metadata.version(package)}"


def _find_maker(name: str) -> Callable[[], Any]:
    module, _, attribute = name.rpartition(".")
    try:
        maker = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"potential={name} is neither chgnet nor sevenn, and cannot be imported ({error}): "
            "write the dotted name of an ASE calculator, such as ase.calculators.emt.EMT"
        ) from error
    if not callable(maker):
        raise UserError(f"potential={name} is not a class or function that gives a calculator")
    return maker


def _version_of(maker: Callable[[], Any]) -> str:
    module = importlib.import_module(maker.__module__)
    package = module.__name__.partition(".")[0]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return f"{package} {importlib.metadata.version(package)}"
    if (path := getattr(module, "__file__", None)) is None:
        return package
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return f"{Path(path).name} {digest[:12]}"
