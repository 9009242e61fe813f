"""The latent diffusion model that comes with the project still generates crystals worth a look."""

from itertools import pairwise

import pytest
import torch

from src.data import CrystalBatch
from src.ldm_module import LDMModule
from src.ldm_module.conditions import density
from src.ldm_module.sampling import generate_crystals
from src.metrics.generation.validity import invalid_reason, is_valid_composition
from tests.conftest import ROOT

CHECKPOINT = ROOT / "data" / "mp_20_small" / "ldm.ckpt"


@pytest.fixture(scope="module")
def ldm() -> LDMModule:
    return LDMModule.load_from_checkpoint(CHECKPOINT)


def generate(ldm: LDMModule, num: int, **asked) -> list[CrystalBatch]:
    return list(generate_crystals(ldm, num, **asked))


def test_it_is_small_and_computes_in_full_precision(ldm):
    assert CHECKPOINT.stat().st_size < 20e6
    assert {parameter.dtype for parameter in ldm.parameters()} == {torch.float32}
    assert ldm.condition_names == ["density", "num_elements", "chemical_system"]


def test_crystals_are_valid(ldm):
    crystals = [c for batch in generate(ldm, 100) for c in batch.to_structure()]
    assert sum(invalid_reason(c) is None for c in crystals) >= 90
    assert sum(is_valid_composition(c.composition) for c in crystals) >= 75


def test_it_follows_what_is_asked_for(ldm):
    means = []
    for value in (3.0, 6.0, 12.0):
        (batch,) = generate(ldm, 20, conditions={"density": value}, cfg_scale=2.0, attempts=1)
        means.append(density(batch).median())
    assert all(low + 1 < high for low, high in pairwise(means))
    asked = {"chemical_system": "Sr-Ti-O"}
    (batch,) = generate(ldm, 8, num_atoms=5, conditions=asked)
    assert all(set(c.symbol_set) == {"Sr", "Ti", "O"} for c in batch.to_structure())


def test_rock_salt(ldm):
    """A structure that every chemist knows: octahedra, 2.8 Å from Na to Cl."""
    (batch,) = generate(ldm, 8, compositions=["NaCl"])
    distances = [c.get_neighbor_list(3.4)[3].min() for c in batch.to_structure()]
    assert torch.tensor(distances).median() == pytest.approx(2.82, abs=0.15)
