"""Check that only one process at a time holds the lock of a folder, until it ends."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from src.utils.lock import lock_folder
from src.utils.output import OutputError

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
from src.utils.lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()
        process.wait()


def test_the_error_names_the_holder_and_a_killed_holder_loses_the_lock(holder, tmp_path):
    for _ in range(2):
        message = rf"{re.escape(str(tmp_path))} is in use by process {holder.pid} on \S+: wait"
        with pytest.raises(OutputError, match=message), lock_folder(tmp_path):
            pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock_folder(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / ".lock_holder").read_text()


def test_an_error_in_the_block_releases_the_lock(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), lock_folder(tmp_path / "new"):
            raise KeyError
