"""Check that results are written atomically, and replace only what they may."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from src.utils.output import OutputError, new_file, new_folder


def fill(
    path: Path,
    text: str = "new",
    overwrite: bool = False,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    with new_folder(path, marker="metrics.json", overwrite=overwrite) as folder:
        (folder / "metrics.json").write_text(text)
        (folder / "figures").mkdir()
        meanwhile()


def fail_with(error: type[BaseException]) -> None:
    raise error


def write(path: Path, text: str, overwrite: bool = False, fail: bool = False) -> None:
    with new_file(path, overwrite) as partial:
        partial.write_text(text)
        if fail:
            raise RuntimeError


def content(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# Folders


def test_a_folder_appears_with_its_content(tmp_path):
    path = tmp_path / "a" / "b" / "results"
    with new_folder(path, marker="metrics.json") as folder:
        (folder / "metrics.json").write_text("new")
        assert not path.exists()
        assert folder.parent.parent == path.parent  # the last step is a rename on one disk
    assert content(tmp_path) == ["a", "a/b", "a/b/results", "a/b/results/metrics.json"]


def test_the_folder_has_the_usual_permissions(tmp_path):
    (tmp_path / "any").mkdir()
    fill(tmp_path / "results")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("any", "results")]
    assert modes[0] == modes[1]


def test_an_empty_folder_may_exist(tmp_path):
    (tmp_path / "results").mkdir()
    fill(tmp_path / "results")
    assert content(tmp_path / "results") == ["figures", "metrics.json"]


@pytest.mark.parametrize("name", ["metrics.json", "other.txt"])
def test_existing_results_are_not_replaced_by_default(tmp_path, name):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / name).write_text("old")
    with pytest.raises(OutputError, match=r"results exists.*overwrite=true"):
        fill(tmp_path / "results")
    assert content(tmp_path) == ["results", f"results/{name}"]


def test_only_results_of_the_same_kind_are_replaced(tmp_path):
    fill(tmp_path / "results", "old")
    (tmp_path / "results" / "figures" / "of old.png").touch()
    fill(tmp_path / "results", "new", overwrite=True)
    assert (tmp_path / "results" / "metrics.json").read_text() == "new"
    assert content(tmp_path) == ["results", "results/figures", "results/metrics.json"]

    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"even with overwrite=true.*no metrics\.json"):
        fill(tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("overwrite", [True, False])
def test_an_existing_file_is_not_replaced_by_a_folder(tmp_path, overwrite):
    (tmp_path / "results").write_text("a file")
    with pytest.raises(OutputError, match="results exists"):
        fill(tmp_path / "results", overwrite=overwrite)
    assert (tmp_path / "results").read_text() == "a file"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [True, False])
def test_a_failure_leaves_no_new_folder_and_keeps_the_old_one(tmp_path, error, old):
    if old:
        fill(tmp_path / "results", "old")
    before = content(tmp_path)
    with pytest.raises(error):
        fill(tmp_path / "results", "half", overwrite=old, meanwhile=lambda: fail_with(error))
    assert content(tmp_path) == before
    assert not old or (tmp_path / "results" / "metrics.json").read_text() == "old"


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_created_in_the_meantime_is_not_replaced(tmp_path, overwrite):
    path = tmp_path / "results"

    def create_folder() -> None:
        path.mkdir()
        (path / "thesis.tex").touch()

    with pytest.raises(OutputError, match="results exists"):
        fill(path, overwrite=overwrite, meanwhile=create_folder)
    assert content(tmp_path) == ["results", "results/thesis.tex"]


def test_the_first_of_two_concurrent_runs_to_finish_wins(tmp_path):
    path = tmp_path / "results"
    with pytest.raises(OutputError, match="results exists"):
        fill(path, "second", meanwhile=lambda: fill(path, "first"))
    assert (tmp_path / "results" / "metrics.json").read_text() == "first"


def test_a_link_is_replaced_but_not_its_target(tmp_path):
    fill(tmp_path / "disk" / "old", "old")
    (tmp_path / "results").symlink_to(tmp_path / "disk" / "old")
    fill(tmp_path / "results", "new", overwrite=True)
    assert (tmp_path / "results" / "metrics.json").read_text() == "new"
    assert (tmp_path / "disk" / "old" / "metrics.json").read_text() == "old"


def test_relative_paths_and_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with new_folder("results", marker="metrics.json") as folder:
        (folder / "metrics.json").touch()
        os.chdir("/")  # the working directory changes in the block
    fill(Path("~/results"))
    assert content(tmp_path / "results") == ["metrics.json"]
    assert content(tmp_path / "home") == ["results", "results/figures", "results/metrics.json"]


# Files


def test_a_file_appears_with_its_content(tmp_path):
    with new_file(tmp_path / "a" / "crystals.cif.gz") as path:
        assert path.name.endswith("crystals.cif.gz")  # writers infer the format from it
        path.write_text("new")
        assert not (tmp_path / "a" / "crystals.cif.gz").exists()
    assert content(tmp_path) == ["a", "a/crystals.cif.gz"]


def test_a_file_is_replaced_only_when_asked(tmp_path):
    (tmp_path / "out.csv").write_text("old")
    with pytest.raises(OutputError, match=r"out\.csv exists"):
        write(tmp_path / "out.csv", "new")
    assert (tmp_path / "out.csv").read_text() == "old"
    write(tmp_path / "out.csv", "new", overwrite=True)
    assert (tmp_path / "out.csv").read_text() == "new"
    assert content(tmp_path) == ["out.csv"]


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write(tmp_path / "out", "new", overwrite=True)
    assert content(tmp_path) == ["out"]


@pytest.mark.parametrize("old", [True, False])
def test_a_failure_leaves_no_new_file_and_keeps_the_old_one(tmp_path, old):
    if old:
        (tmp_path / "out.csv").write_text("old")
    with pytest.raises(RuntimeError):
        write(tmp_path / "out.csv", "half", overwrite=old, fail=True)
    assert content(tmp_path) == (["out.csv"] if old else [])
    assert not old or (tmp_path / "out.csv").read_text() == "old"
