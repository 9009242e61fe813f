"""Every command configures how its threads wait before torch is loaded, and how many there are."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from src.utils.errors import UserError
from src.utils.threads import SPIN_COUNT, WAIT_VARIABLES, at_most_threads, limit_spinning

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(
    path
    for folder in ("src", "scripts")
    for path in (ROOT / folder).glob("*.py")
    if 'if __name__ == "__main__":' in path.read_text()
)
# which do without it
WITHOUT_TORCH = {
    "collect_sweep.py", "config_reference.py", "download_data.py", "draw_imports.py",
    "draw_matching.py", "make_prototypes.py",
}  # fmt: skip


@pytest.fixture
def clean(monkeypatch):
    """An environment without thread settings."""
    for name in (*WAIT_VARIABLES, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


# How they wait


def test_waiting_threads_spin_only_for_a_moment(clean):
    limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == SPIN_COUNT == "5000"


@pytest.mark.parametrize("name", WAIT_VARIABLES)
def test_what_the_environment_says_stays(clean, monkeypatch, name):
    monkeypatch.setenv(name, "ACTIVE")
    limit_spinning()
    assert {name: os.environ.get(name) for name in WAIT_VARIABLES} == {
        **dict.fromkeys(WAIT_VARIABLES),
        name: "ACTIVE",
    }


# Runs each file up to where torch is loaded first, and says what the environment is there.
WATCH = """
import json, os, runpy, sys

class Loaded(BaseException):
    pass

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise Loaded

sys.meta_path.insert(0, Watch())
before, found = set(sys.modules), {}
for path in sys.argv[1:]:
    os.environ.pop("GOMP_SPINCOUNT", None)
    sys.path.insert(0, os.path.dirname(path))  # as where Python runs a file
    try:
        runpy.run_path(path, run_name="watched")
    except Loaded:
        found[path] = os.environ.get("GOMP_SPINCOUNT")
    else:
        found[path] = f"no torch, {os.environ.get('GOMP_SPINCOUNT')}"
    del sys.path[0]
    for name in [name for name in sys.modules if name.split(".")[0] in ("src", "torch")]:
        del sys.modules[name]
print(json.dumps(found))
"""


def test_every_command_says_so_before_it_imports_ours():
    """Before that, they import only modules of `src.utils`, which do not load torch.

    `command` of `src.utils.entry` says so too.
    """
    for path in COMMANDS:
        names = [
            node.module if isinstance(node, ast.ImportFrom) else ast.unparse(node)
            for node in ast.parse(path.read_text()).body
            if isinstance(node, (ast.ImportFrom, ast.Expr))
        ]
        if path.name in WITHOUT_TORCH:
            assert "limit_spinning()" not in names, path
        elif "src.utils.entry" in names:
            assert [name for name in names if name.startswith("src.")] == ["src.utils.entry"], path
        else:
            before = names[: names.index("limit_spinning()")]
            ours = [name for name in before if name.startswith("src.")]
            assert "src.utils.threads" in ours
            assert all(name.startswith("src.utils.") for name in ours), path


@pytest.mark.slow
def test_every_command_says_so_before_torch_is_loaded():
    assert len(COMMANDS) > 10
    done = subprocess.run(
        [sys.executable, "-c", WATCH, *map(str, COMMANDS)],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k not in WAIT_VARIABLES},
        capture_output=True,
        text=True,
        check=True,
    )
    found = {Path(path).name: said for path, said in json.loads(done.stdout).items()}
    for path in COMMANDS:
        if path.name in WITHOUT_TORCH:
            assert found[path.name] == "no torch, None", path
        else:
            assert found[path.name].removeprefix("no torch, ") == SPIN_COUNT, path


@pytest.mark.skipif(sys.platform != "linux", reason="torch comes with another OpenMP elsewhere")
def test_torch_heeds_it():
    code = "from src.utils.threads import limit_spinning; limit_spinning(); import torch"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={
            **{k: v for k, v in os.environ.items() if k not in WAIT_VARIABLES},
            "OMP_DISPLAY_ENV": "verbose",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"GOMP_SPINCOUNT = '{SPIN_COUNT}'" in done.stderr


# How many there are


@pytest.mark.parametrize(("number", "expected"), [(1, 1), (2, 2), (8, 3), (None, 3)])
def test_no_more_than_are_asked_for_or_than_there_are(clean, three_threads, number, expected):
    with at_most_threads(number):
        assert torch.get_num_threads() == expected
        assert os.environ.get("OMP_NUM_THREADS") == (str(expected) if number else None)
    assert torch.get_num_threads() == 3
    assert "OMP_NUM_THREADS" not in os.environ


def test_they_are_as_they_were_after_an_error(three_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with pytest.raises(ZeroDivisionError), at_most_threads(1):
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == 3
    assert os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("number", [0, -1])
def test_no_threads_at_all_are_refused(number):
    with pytest.raises(UserError, match="num_threads must be at least 1"), at_most_threads(number):
        pass


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], None),
        (["size=medium"], None),
        (["size=small"], 2),
        (["experiment=prototypes/vae_dng"], 2),
        (["experiment=mp_20/vae_dng_small"], 2),
        (["experiment=mp_20/vae_dng_medium"], None),
        (["experiment=mp_20/vae_dng_small", "num_threads=4"], 4),
    ],
)
def test_a_small_model_has_two(overrides, expected):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        assert compose("train_vae", overrides).num_threads == expected
