"""Loggers without an account, without a prompt, and with one run for each run that continues."""

import pytest
import wandb

from src.utils.loggers import TensorBoardLogger, own_wandb_run, wandb_logger


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """A user without W&B: no key, no settings, an empty home folder, no keyboard."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked a question"))
    monkeypatch.setattr("getpass.getpass", lambda *_, **__: pytest.fail("asked for a key"))
    wandb.teardown()  # it remembers a key
    yield
    wandb.teardown()


def is_offline(logger) -> bool:
    return logger._offline


def test_offline_without_a_key(tmp_path):
    assert is_offline(wandb_logger(save_dir=tmp_path))


def test_online_with_a_key(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert not is_offline(wandb_logger(save_dir=tmp_path))


@pytest.mark.slow
def test_online_with_a_key_in_netrc(tmp_path):
    netrc = tmp_path / ".netrc"
    netrc.write_text(f"machine api.wandb.ai\n  login user\n  password {'0' * 40}\n")
    netrc.chmod(0o600)
    assert not is_offline(wandb_logger(save_dir=tmp_path))


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_wandb_mode_decides_where_it_is_set(monkeypatch, tmp_path, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    assert not is_offline(wandb_logger(save_dir=tmp_path))  # left to wandb itself


def test_an_explicit_choice_stays(monkeypatch, tmp_path):
    assert not is_offline(wandb_logger(save_dir=tmp_path, offline=False))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert is_offline(wandb_logger(save_dir=tmp_path, offline=True))


def test_arguments_pass_through(tmp_path):
    logger = wandb_logger(save_dir=tmp_path, project="xtal", group="some runs", name="first")
    assert (logger.name, logger.save_dir) == ("xtal", str(tmp_path))
    assert logger._wandb_init["group"] == "some runs"
    assert logger._wandb_init["name"] == "first"
    assert "anonymous" not in logger._wandb_init  # of which wandb would warn


def test_metrics_are_written_below_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "")  # so that what the logger sets is undone
    monkeypatch.delenv("WANDB_MODE")
    logger = wandb_logger(save_dir=tmp_path / "run", project="xtal")
    logger.log_metrics({"loss": 0.5}, step=0)
    assert logger.experiment.settings._offline
    wandb.finish()
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))) == 1


# Runs after one another in one process


def runs_below(folder) -> int:
    return len(list(folder.glob("wandb/offline-run-*/*.wandb")))


def test_each_block_has_a_run_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("first", "second"):
        with own_wandb_run():
            wandb_logger(save_dir=tmp_path / name).log_metrics({"loss": 0.5}, step=0)
            assert wandb.run is not None
        assert wandb.run is None
        assert runs_below(tmp_path / name) == 1


def test_a_block_that_fails_ends_its_run_too(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "disabled")

    def fail() -> None:
        assert wandb_logger(save_dir=tmp_path).experiment is wandb.run
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), own_wandb_run():
        fail()
    assert wandb.run is None


def test_a_run_that_was_open_before_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    mine = wandb.init(dir=tmp_path)
    with own_wandb_run(), pytest.warns(UserWarning, match="already in progress"):
        assert wandb_logger(save_dir=tmp_path).experiment is mine
    assert wandb.run is mine
    mine.finish()


# Runs that are continued


def id_from(folder, step: int, **given) -> str:
    logger = wandb_logger(save_dir=folder, **given)
    logger.continue_from(step)
    return logger._wandb_init["id"]


def test_a_continued_run_is_the_same_run_there(monkeypatch, tmp_path):
    first = id_from(tmp_path, 0)
    assert id_from(tmp_path, 7) == id_from(tmp_path, 9) == first
    assert id_from(tmp_path, 0) != first  # a new run in the same folder
    assert id_from(tmp_path, 7, id="mine") == "mine"
    monkeypatch.setenv("WANDB_RUN_ID", "of_an_agent")
    assert id_from(tmp_path, 0) is None


def test_tensorboard_drops_the_steps_that_are_repeated(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first, steps in ((0, range(4)), (2, range(2, 3))):
        logger = TensorBoardLogger(tmp_path, name=None, version="")
        logger.continue_from(first)
        for step in steps:
            logger.log_metrics({"loss": first + step}, step=step)
        logger.finalize("success")
    events = accumulators.EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(0, 0), (1, 1), (2, 4)]
