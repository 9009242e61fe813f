from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from src.commands.generated_latents import Latents, draw_latents, latent_figures, load_encoder
from src.utils.errors import UserError
from src.vae_module import VAEModule

DATA = Path(__file__).resolve().parents[2] / "data"
CENTERED = [[0, 0, 0], [0.5, 0.5, 0.5]]
SALTS = [Structure(Lattice.cubic(a), ["Cs", "Cl"], CENTERED) for a in (3.9, 4.1, 4.3, 4.5)]
UNKNOWN = Structure(Lattice.cubic(4.0), ["Og", "Cl"], CENTERED)


@pytest.fixture(scope="module")
def vae() -> VAEModule:
    return load_encoder(str(DATA / "prototypes" / "vae.ckpt"), "cpu")


def test_they_are_the_features_of_the_model(vae):
    found = draw_latents(vae, [*SALTS, UNKNOWN], 5, seed=1)
    assert sorted(found.indices.tolist()) == [0, 1, 2, 3]
    assert found.num_left_out == 1
    pooled = vae.featurize([SALTS[i] for i in found.indices]).pooled.numpy()
    np.testing.assert_allclose(found.vectors, pooled, atol=1e-5)
    again = draw_latents(vae, [*SALTS, UNKNOWN], 2, seed=1)
    assert again.indices.tolist() == found.indices[:2].tolist()
    assert len(draw_latents(vae, [UNKNOWN], 5, seed=1)) == 0


def test_figures_and_their_sample_size(caplog):
    rng = np.random.default_rng(0)
    vectors = rng.normal(3.0, 5.0, size=(3, 60, 4))
    vectors[0, :, 1] += 10
    generated, reference, held_out = (Latents(np.arange(60), each) for each in vectors)
    few = Latents(generated.indices[:50], generated.vectors[:50], num_left_out=3)
    figures = latent_figures(few, reference, held_out, seed=0)
    assert (figures["latent_sample_size"], figures["num_not_encoded"]) == (50, 3)
    assert figures["latent_p_value"] == 0.001
    assert figures["latent_p_value_held_out"] > 0.05
    assert figures["latent_energy_distance"] > 3 * figures["latent_energy_distance_held_out"]
    scaled = [Latents(each.indices, each.vectors * 7 + 1) for each in (few, reference, held_out)]
    assert latent_figures(*scaled, seed=0) == pytest.approx(figures | {"num_not_encoded": 0})
    assert latent_figures(few, reference, None, seed=0)["latent_p_value_held_out"] is None
    nothing = Latents(np.arange(0), np.empty((0, 4)))
    assert latent_figures(nothing, reference, None, seed=0)["latent_energy_distance"] is None
    assert "latents are not compared" in caplog.text


def test_the_vae_in_a_latent_diffusion_model():
    path = str(DATA / "mp_20_small" / "ldm.ckpt")
    assert isinstance(load_encoder(path, "cpu"), VAEModule)


def test_what_is_no_encoder(tmp_path):
    (tmp_path / "other.ckpt").write_text("no")
    with pytest.raises(UserError, match=r"is neither a VAE .* nor a latent diffusion model"):
        load_encoder(str(tmp_path / "other.ckpt"), "cpu")
    with pytest.raises(FileNotFoundError, match=r"train_vae\.py"):
        load_encoder(str(tmp_path / "none.ckpt"), "cpu")
