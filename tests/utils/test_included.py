"""Data and models that come with the project are found beside an installed package."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from src.utils import included
from src.utils.included import find_included, with_included_paths


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """An empty folder; the package has `prototypes/vae.ckpt`."""
    package = tmp_path / "package" / "included"
    (package / "prototypes").mkdir(parents=True)
    (package / "prototypes" / "vae.ckpt").touch()
    monkeypatch.setattr(included, "INCLUDED", package)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PROJECT_ROOT", str(folder))
    return folder


def test_the_copy_of_the_package_stands_in_for_a_missing_file(project):
    path = "data/prototypes/vae.ckpt"
    copy = included.INCLUDED / "prototypes" / "vae.ckpt"
    assert find_included(path) == find_included(project / path) == copy
    for other in ("vae.ckpt", "other/prototypes/vae.ckpt", "data/prototypes/no.ckpt", "data"):
        assert find_included(other) == Path(other)
    (project / "data" / "prototypes").mkdir(parents=True)
    (project / path).touch()  # one's own takes precedence
    assert find_included(path) == Path(path)


def test_paths_in_a_config(project):
    cfg = OmegaConf.create({
        "root": str(project), "ckpt_path": "data/prototypes/vae.ckpt", "output": "???",
        "data": {"data_dir": "${root}/data/prototypes", "cell": "niggli"},
        "inputs": ["data/prototypes", "${unknown}", 1],
    })  # fmt: skip
    found = with_included_paths(cfg)
    copy = included.INCLUDED / "prototypes"
    assert found.ckpt_path == f"{copy}/vae.ckpt"
    assert (found.data.data_dir, found.inputs[0]) == (str(copy), str(copy))
    assert cfg.ckpt_path == "data/prototypes/vae.ckpt"
    assert OmegaConf.is_missing(found, "output")


def test_nothing_changes_in_a_checkout():
    cfg = OmegaConf.create({"ckpt_path": "data/prototypes/no.ckpt"})
    assert with_included_paths(cfg) is cfg
