"""What the README shows works."""

import re
from pathlib import Path

import pytest
import torch
from pymatgen.core import Lattice, Structure

from src.utils.checkpoints import save_checkpoint
from src.vae_module import VAEModule
from src.vae_module.decoders.transformer import TransformerDecoder
from src.vae_module.encoders.transformer import TransformerEncoder

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SIZES = {"d_model": 16, "nhead": 2, "num_layers": 1, "dim_feedforward": 16}


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
def test_python_runs(code, tmp_path, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    Path("path/to").mkdir(parents=True)
    vae = VAEModule(TransformerEncoder(**SIZES), TransformerDecoder(**SIZES))
    save_checkpoint(vae, "path/to/best.ckpt")
    rocksalt = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )
    names = {"structures": [rocksalt]}
    exec(code, names)
    assert len(names["reconstruction"].to_structure()[0]) == 8


def test_the_two_commands_come_first():
    first_screen = README.splitlines()[:12]
    assert any(line.startswith("make train") for line in first_screen)
    assert any(line.startswith("make test") for line in first_screen)


def test_files_and_experiments_that_are_named_are_there():
    for path in re.findall(r"`((?:src|configs|data|scripts)/[\w./]+)`", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"python (\w+/\w+\.py)", README):
        assert (ROOT / path).is_file(), path
    for name in re.findall(r"experiment=([\w/]+)", README):
        assert (ROOT / "configs" / "experiment" / f"{name}.yaml").is_file(), name
