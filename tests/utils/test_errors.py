"""A user error ends in one message and exit code 1; a bug shows its stack trace."""

import ast
import logging
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf

from src.data import DataError
from src.utils.checkpoints import CheckpointError, NoCheckpointError
from src.utils.errors import UserError, exit_on_user_error

ROOT = Path(__file__).resolve().parents[2]


def raising(error: Exception):
    @exit_on_user_error
    def main() -> None:
        raise error

    return main


USER_ERRORS = [
    UserError("wrong input"),
    DataError("wrong data"),
    CheckpointError("wrong checkpoint"),
    NoCheckpointError("no checkpoint"),
    FileNotFoundError("no such file"),
    OSError(28, "No space left on device"),
    MisconfigurationException("wrong argument of the Trainer"),
    InstantiationException("wrong config"),
]


@pytest.fixture(autouse=True)
def short_errors(monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


@pytest.mark.parametrize("error", USER_ERRORS, ids=lambda error: type(error).__name__)
def test_one_message_and_exit_code_1(caplog, error):
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as exit_info:
        raising(error)()
    assert exit_info.value.code == 1
    [record] = caplog.records
    assert record.message.startswith(str(error))
    assert "HYDRA_FULL_ERROR=1" in record.message
    assert record.exc_info is None


@pytest.mark.parametrize("mode", ["RUN", "MULTIRUN"])
def test_a_job_of_a_sweep_raises_so_that_the_others_go_on(caplog, monkeypatch, mode):
    config = OmegaConf.create({"hydra": {"mode": RunMode[mode]}})
    monkeypatch.setattr(HydraConfig.instance(), "cfg", config)
    error = UserError("wrong value")
    with pytest.raises(SystemExit if mode == "RUN" else UserError) as raised:
        raising(error)()
    assert (raised.value is error) is (mode == "MULTIRUN")
    assert caplog.text.count("wrong value\n") == 1


def test_a_config_without_a_needed_value(caplog):
    @exit_on_user_error
    def main() -> None:
        instantiate(OmegaConf.create({"data": {"_target_": "builtins.dict", "folder": "???"}}).data)

    with pytest.raises(SystemExit):
        main()
    assert "data.folder" in caplog.text


@pytest.mark.parametrize("error", USER_ERRORS, ids=lambda error: type(error).__name__)
def test_the_trace_on_demand(monkeypatch, error):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(type(error)) as raised:
        raising(error)()
    assert raised.value is error


@pytest.mark.parametrize(
    "error", [ValueError("bug"), TypeError("bug"), KeyError("bug"), RuntimeError("bug")]
)
def test_other_errors_keep_their_trace(error):
    with pytest.raises(type(error)):
        raising(error)()


def refuses(value: int) -> None:
    raise ValueError(f"{value} is too large")


def has_a_bug(value: int) -> None:
    raise AttributeError("no such attribute")


@pytest.mark.parametrize(
    ("target", "arguments", "is_users"),
    [(refuses, {"value": 3}, True), (refuses, {"valu": 3}, True), (has_a_bug, {"value": 3}, False)],
)
def test_a_constructor_that_refuses_its_config_is_told_from_one_that_fails(
    target, arguments, is_users
):
    @exit_on_user_error
    def main() -> None:
        instantiate({"_target_": f"{__name__}.{target.__name__}", **arguments})

    with pytest.raises(SystemExit if is_users else InstantiationException):
        main()


def test_a_config_that_cannot_be_resolved(caplog):
    @exit_on_user_error
    def main() -> None:
        OmegaConf.to_container(OmegaConf.create({"a": "${b}"}), resolve=True)

    with pytest.raises(SystemExit):
        main()
    assert "'b' not found" in caplog.text


def test_arguments_value_and_name_pass_through():
    @exit_on_user_error
    def main(a: int, *, b: int) -> int:
        """Add."""
        return a + b

    assert main(2, b=3) == 5
    assert (main.__name__, main.__doc__) == ("main", "Add.")


def test_all_errors_about_input_have_one_base():
    """So that a program can distinguish user errors from bugs."""
    classes = [
        (node.name, [base.id for base in node.bases if isinstance(base, ast.Name)])
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    assert [name for name, bases in classes if "ValueError" in bases] == ["UserError"]
    assert issubclass(CheckpointError, UserError)
    assert issubclass(NoCheckpointError, CheckpointError)
    assert issubclass(DataError, UserError)
