"""The table and picture of guidance, with a model that meets requests as far as it is told to."""

import json

import pandas as pd
import pytest
import torch
from PIL import Image
from pymatgen.core import Lattice, Structure

from scripts import guidance
from src.data import CrystalBatch
from src.ldm_module import LDMModule
from src.utils.checkpoints import save_checkpoint
from tests.conftest import ROOT
from tests.ldm_module.conftest import CONDITIONS, make_ldm

PROPERTIES = ["density", "num_elements"]


@pytest.fixture
def ldm():
    return make_ldm(conditions={**CONDITIONS, "properties": PROPERTIES})


@pytest.fixture
def batch() -> CrystalBatch:
    coords = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]]
    given = [(3.0, ["Ti"]), (4.0, ["Sr", "O"]), (4.2, ["Sr", "Ti", "O"])]
    return CrystalBatch.from_structures(
        [Structure(Lattice.cubic(a), species, coords[: len(species)]) for a, species in given]
    )


def test_errors_are_those_of_the_samples(ldm, batch, monkeypatch):
    """It generates the crystals themselves, 10 % too dense unless guided, and one on a point."""

    def sample(self, request, steps, scale, conditions, generator, attempts):
        ((name, asked),) = conditions.items()
        assert asked == pytest.approx(guidance.COMPUTED[name](batch).tolist())
        assert request.num_atoms.tolist() == batch.num_atoms.tolist()
        lattices = batch.lattices / (1.0 if scale else 1.1 ** (1 / 3))
        coords = torch.where((batch.batch == 1)[:, None], 0.0, batch.frac_coords)
        return batch.replace(lattices=lattices, frac_coords=coords)

    monkeypatch.setattr(LDMModule, "sample", sample)
    rows = guidance.measure(ldm, batch, [0, 2], 3)
    assert [(row.property, row.guidance) for row in rows] == [
        ("density", 0), ("density", 2), ("num_elements", 0), ("num_elements", 2),
    ]  # fmt: skip
    assert all(row.valid_structure == pytest.approx(2 / 3) for row in rows)
    expected = 0.1 * guidance.COMPUTED["density"](batch)[[0, 2]].mean().item()
    errors = [row.mean_error for row in rows]
    assert errors == pytest.approx([expected, 0, 0, 0], abs=1e-4)


def test_the_command(ldm, tmp_path, capsys):
    save_checkpoint(ldm, tmp_path / "ldm.ckpt")
    rows = pd.read_csv(ROOT / "data" / "prototypes" / "test.csv", nrows=12)
    rows.to_csv(tmp_path / "test.csv", index=False)
    given = [str(tmp_path / "ldm.ckpt"), str(tmp_path / "test.csv"), "--steps", "2", "--num", "8"]
    out = ["--json", str(tmp_path / "g.json"), "--picture", str(tmp_path / "g.png")]
    found = guidance.main([*given, *out, "--guidance", "0", "1", "4"])
    assert json.loads((tmp_path / "g.json").read_text()) == found
    assert [row["guidance"] for row in found] == 2 * [0, 1, 4]
    with Image.open(tmp_path / "g.png") as picture:
        assert picture.size == (1080, 660)
    text = capsys.readouterr().out
    assert "of unconditioned" in text
    assert "num_elements" in text


def test_a_model_that_cannot_be_asked(batch):
    with pytest.raises(ValueError, match="knows none of the conditions density"):
        guidance.measure(make_ldm(conditions=None), batch, [1], 2)


def test_no_sample_is_valid():
    rows = [guidance.Row("density", 0, 1.0, 0.5), guidance.Row("density", 4, None, 0.0)]
    guidance._print(rows)
    assert len(guidance.draw(rows).axes) == 2


def test_batches_ask_for_their_own_values(ldm, batch, monkeypatch):
    monkeypatch.setattr(guidance, "BATCH_SIZE", 2)
    (row,) = guidance.measure(ldm, CrystalBatch.from_structures(batch.to_structure()), [1], 2)[:1]
    assert row.property == "density"
