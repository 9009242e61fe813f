"""`make lock`, in a folder of its own with an environment that is played."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture
def lock(tmp_path):
    """Pin what `pip freeze` prints; returns its exit code and the file that is there then."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)

    def make(*installed: str, code: int = 0) -> tuple[int, list[str]]:
        lines = "\n".join(installed)
        python.write_text(f"#!/bin/sh\ncat <<'END'\n{lines}\nEND\nexit {code}\n")
        python.chmod(0o755)
        done = subprocess.run(["make", "lock"], cwd=tmp_path, capture_output=True, check=False)
        return done.returncode, (tmp_path / "requirements.lock").read_text().splitlines()

    (tmp_path / "requirements.lock").write_text("numpy==1\n")
    return make


def test_the_lock_is_the_same_for_all_builds_of_torch(lock):
    rest = ["numpy==2.4.6", "nvitop==1.0", "tritonclient==2.0", "wheel==0.48.0"]
    pinned = (0, sorted(["torch==2.13.0", *rest]))
    assert lock(*sorted(["torch==2.13.0+cpu", *rest])) == pinned
    cuda = [
        "cuda-bindings==13.5.0", "cuda-toolkit==13.0.3.0", "nvidia-cublas==13.1.1.3",
        "nvidia-cudnn-cu13==9.20.0.48", "triton==3.7.1",
    ]  # fmt: skip
    for suffix in ("", "+cu130"):
        assert lock(*sorted([f"torch==2.13.0{suffix}", *cuda, *rest])) == pinned


def test_neither_pip_nor_the_project_is_pinned(lock):
    assert lock("pip==26.3", "xtal-latent @ file:///somewhere", "yarl==1.0") == (0, ["yarl==1.0"])


def test_the_lock_stays_where_the_versions_cannot_be_had(lock):
    code, pinned = lock("yarl==1.0", code=1)
    assert code != 0
    assert pinned == ["numpy==1"]
