"""A person's mistake ends in one message and exit code 1; a mistake in code shows its trace."""

import logging

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from src.data import DataError
from src.utils.checkpoints import CheckpointError
from src.utils.errors import exit_on_user_error


def raising(error: Exception):
    @exit_on_user_error
    def main() -> None:
        raise error

    return main


USER_ERRORS = [
    ValueError("wrong value"),
    DataError("wrong data"),
    CheckpointError("wrong checkpoint"),
    FileNotFoundError("no such file"),
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


@pytest.mark.parametrize("error", [TypeError("bug"), KeyError("bug"), RuntimeError("bug")])
def test_other_errors_keep_their_trace(error):
    with pytest.raises(type(error)):
        raising(error)()


def test_arguments_value_and_name_pass_through():
    @exit_on_user_error
    def main(a: int, *, b: int) -> int:
        """Add."""
        return a + b

    assert main(2, b=3) == 5
    assert (main.__name__, main.__doc__) == ("main", "Add.")
