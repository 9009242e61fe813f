"""The command, with a folder as the mirror."""

import hashlib
import importlib.util
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.data import sources
from src.data.known_sets import Checksum, KnownSet

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "download_data.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("download_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def mirror(script, tmp_path, monkeypatch) -> Iterator[Path]:
    """Two data sets, which are the only known ones."""
    known = {}
    for name in ("one", "two"):
        files = {f"{split}.csv": f"{name} {split}".encode() for split in ("train", "val")}
        for file, content in files.items():
            path = tmp_path / "mirror" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        sums = {
            file: Checksum(hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())
            for file, content in files.items()
        }
        known[name] = KnownSet("http://nowhere/", sums, "a license", "a paper", {"train": 1234})
    monkeypatch.setattr(script, "KNOWN_SETS", known)
    monkeypatch.setattr(sources, "KNOWN_SETS", known)
    monkeypatch.setenv("COLUMNS", "300")
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield tmp_path / "mirror"
    root.setLevel(level)  # the command sets both, and other tests read the log
    root.handlers[:] = handlers


def run(script, mirror: Path, *arguments: str) -> int:
    return script.main(
        [*arguments, "--data-dir", str(mirror.parent / "data"), "--base-url", str(mirror)]
    )


def fetched(mirror: Path) -> set[str]:
    folder = mirror.parent / "data"
    return {str(path.relative_to(folder)) for path in folder.rglob("*.csv")}


def test_one_set(script, mirror, capsys):
    assert run(script, mirror, "two") == 0
    assert fetched(mirror) == {"two/train.csv", "two/val.csv"}
    output = capsys.readouterr().out
    assert "License: a license. Cite: a paper." in output
    (row,) = [line for line in output.splitlines() if line.startswith("│ two")]
    for part in ("train.csv, val.csv", "1,234 train", str(mirror.parent / "data" / "two")):
        assert part in row


def test_all_of_which_one_is_there(script, mirror, capsys):
    run(script, mirror, "two", "two")
    capsys.readouterr()
    assert run(script, mirror, "all") == 0
    assert len(fetched(mirror)) == 4
    output = capsys.readouterr().out
    assert output.count("already there") == 1
    assert output.count("License") == 1


def test_the_others_are_fetched_where_one_fails(script, mirror, capsys):
    (mirror / "one" / "val.csv").write_bytes(b"damaged")
    assert run(script, mirror, "all") == 1
    assert fetched(mirror) == {"one/train.csv", "two/train.csv", "two/val.csv"}
    output = capsys.readouterr()
    assert "do not have the published checksum" in output.err
    assert output.out.count("failed") == 1


def test_stopped(script, mirror, capsys, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "download", stop)
    assert run(script, mirror, "all") == 130
    assert "Run the same command again to resume" in capsys.readouterr().err


def test_a_narrow_terminal_shows_the_whole_folder(script, mirror, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    run(script, mirror, "one")
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    folder = "".join(row[4].strip() for row in rows)
    assert folder == str(mirror.parent / "data" / "one")


def test_a_folder_that_cannot_be_made(script, mirror, capsys):
    (mirror.parent / "data").write_text("in the way")
    assert run(script, mirror, "one") == 1
    assert str(mirror.parent / "data") in capsys.readouterr().err


def test_an_unknown_set(script, mirror, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(script, mirror, "three")
    assert "three" in capsys.readouterr().err
    assert fetched(mirror) == set()


def test_help_waits_for_nothing_heavy():
    code = (
        "import sys, runpy; sys.argv = ['download_data.py', '--help']\n"
        "try: runpy.run_path({!r}, run_name='__main__')\n"
        "finally: print([n for n in ('torch', 'requests', 'pymatgen') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code.format(str(SCRIPT))],
        cwd=SCRIPT.parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "mp_20, perov_5, carbon_24, mpts_52, alex_mp_20, or all" in done.stdout
    assert done.stdout.endswith("[]\n")
