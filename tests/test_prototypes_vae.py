"""The checkpoint that comes with the included data still reaches the documented results."""

from pathlib import Path

import pytest
import torch

from src.data import DataModule
from src.metrics.matching import FastMatcher
from src.metrics.reconstruction.evaluate import evaluate_reconstruction
from src.vae_module import VAEModule

PROTOTYPES = Path(__file__).resolve().parents[1] / "data" / "prototypes"


@pytest.fixture(scope="module")
def vae() -> VAEModule:
    return VAEModule.load_from_checkpoint(PROTOTYPES / "vae.ckpt")


def test_it_is_small_and_computes_in_full_precision(vae):
    assert (PROTOTYPES / "vae.ckpt").stat().st_size < 4e6
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.float32}
    assert vae.training_set["num_crystals"] == 5000


def test_crystals_come_back_from_their_latents(vae, tmp_path):
    dataset = DataModule(PROTOTYPES, cache_dir=tmp_path).dataset("test")
    with FastMatcher() as matcher:
        figures = evaluate_reconstruction(vae, [dataset.batch(torch.arange(200))], matcher)
    assert figures["match_rate"] >= 0.995
    assert figures["rmse"] < 0.009
    assert figures["match_rate_default"] >= 0.995
    assert figures["atom_type_accuracy"] > 0.999
