"""Fixtures that many tests share."""

import gc
import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector from searching what is imported, over and over and in vain.

    PyTorch, Lightning and pymatgen leave about a million objects, all of which are still in use.
    """
    import hypothesis  # noqa: F401 (it asks the collector for objects that are frozen later)

    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def configs_are_read_once() -> Iterator[None]:
    from tests.composing import shared_compositions

    with shared_compositions():
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real crystals beside the project; see its README for what they are."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real crystals are not at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def shared_cases() -> Path:
    """Files that were once read wrongly, beside the project."""
    folder = SHARED_DATA.with_name("cases")
    if not folder.is_dir():
        pytest.skip(f"the files that were once read wrongly are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory) -> Path:
    """The folder of a run of a minute on the embedded data, for slow tests: most crystals match."""
    folder = tmp_path_factory.mktemp("trained")
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "src" / "train_vae.py"), "experiment=prototypes/vae_dng",
            "data.batch_size=64", "vae_module.optimizer.lr=0.002", "trainer.max_epochs=12",
            "callbacks.match_rate.every_n_epochs=0", f"paths.cache_dir={folder}/cache",
            f"hydra.run.dir={folder}/run",
        ],
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def one_thread():
    """For tests of tiny models, in which more threads only get into each other's way."""
    import torch  # not above: the process that distributes tests would wait for it as well

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
