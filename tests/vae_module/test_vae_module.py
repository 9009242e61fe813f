"""The public methods of `VAEModule`, its symmetries and its checkpoints."""

import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from ase import Atoms
from lightning import Trainer
from lightning.pytorch.strategies import FSDPStrategy
from pymatgen.core import Lattice, Structure

from src.data import CrystalBatch, DataModule
from src.data.augmentation import random_rotation, random_translation
from src.data.cif import Crystal, write_cif
from src.utils.checkpoints import CheckpointError, save_checkpoint
from src.utils.errors import UserError
from src.vae_module import DiagonalGaussianDistribution, VAEModule
from src.vae_module.decoders.transformer import TransformerDecoder
from src.vae_module.encoders.transformer import TransformerEncoder
from src.vae_module.losses import frac_coords_loss, lengths_loss

SIZES = {"d_model": 32, "nhead": 4, "num_layers": 2, "dim_feedforward": 64}
RAW_ENCODER = {"coords_input": "raw", "lattice_input": "matrix", "index_embedding": True}
RAW_DECODER = {"coords_output": "raw", "index_embedding": True}


def make_vae(
    atom_type_predict: bool = True, encoder: dict | None = None, decoder: dict | None = None
) -> VAEModule:
    torch.manual_seed(0)
    return VAEModule(
        TransformerEncoder(**SIZES, **(encoder or {})),
        TransformerDecoder(**SIZES, atom_type_predict=atom_type_predict, **(decoder or {})),
        latent_dim=5,
    ).eval()


def make_batch() -> CrystalBatch:
    generator = torch.Generator().manual_seed(1)
    structures = []
    for n in (1, 4, 9):
        lattice = Lattice.from_parameters(3 + n / 3, 4.1, 5.2, 80, 95, 110)
        coords = torch.rand(n, 3, generator=generator).numpy()
        structures.append(Structure(lattice, (["O", "Ti", "Sr"] * 3)[:n], coords))
    return CrystalBatch.from_structures(structures)


@pytest.fixture
def batch() -> CrystalBatch:
    return make_batch()


def test_the_public_calls(batch):
    vae = make_vae()
    encoded = vae.encode(batch)
    posterior = encoded["posterior"]
    assert isinstance(posterior, DiagonalGaussianDistribution)
    assert posterior.mean.shape == (14, 5)
    encoded["x"] = posterior.sample()
    out = vae.decode(encoded)
    shapes = {name: tuple(value.shape) for name, value in out.items()}
    assert shapes == {
        "atom_types": (14, 100),
        "frac_coords": (14, 3),
        "lengths": (3, 3),
        "angles": (3, 3),
        "lattices": (3, 3, 3),
    }
    recon = vae.reconstruct(out, batch)
    assert isinstance(recon, CrystalBatch)
    assert recon.atom_types.min() >= 1
    assert torch.equal(recon.num_atoms, batch.num_atoms)
    assert torch.equal(recon.frac_coords, out["frac_coords"])


def test_latents_alone_can_be_decoded(batch):
    vae = make_vae()
    encoded = vae.encode(batch)
    expected = vae.decode(encoded)["frac_coords"]
    num_atoms = batch.num_atoms.tolist()
    assert torch.equal(vae.decode(encoded["x"], num_atoms)["frac_coords"], expected)
    sampled = vae.sample(CrystalBatch.for_sampling(batch.num_atoms), latents=encoded["x"])
    assert torch.equal(sampled.frac_coords, expected)
    with pytest.raises(UserError, match="num_atoms adds up to 3, but there are 14 latents"):
        vae.decode(encoded["x"], [1, 2])
    with pytest.raises(UserError, match="needs num_atoms"):
        vae.decode(encoded["x"])
    with pytest.raises(UserError, match=r"latents has the shape \(13, 5\), not \(14, 5\)"):
        vae.sample(CrystalBatch.for_sampling(batch.num_atoms), latents=encoded["x"][1:])


@pytest.mark.parametrize("decoder", [{}, RAW_DECODER], ids=["torus", "raw"])
def test_decoded_coordinates_are_in_the_cell(batch, decoder):
    out = make_vae(decoder=decoder).decode(make_vae(decoder=decoder).encode(batch))
    assert out["frac_coords"].min() >= 0
    assert out["frac_coords"].max() < 1


def test_decode_leaves_its_argument_alone_and_needs_only_what_encode_gives(batch):
    vae = make_vae()
    encoded = vae.encode(batch)
    before = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in encoded.items()}
    vae.decode(encoded)
    assert set(before) == set(encoded)
    for key, value in before.items():
        same = torch.equal(value, encoded[key]) if isinstance(value, torch.Tensor) else True
        assert same, key
        assert isinstance(value, torch.Tensor) or value is encoded[key]
    fewer = {key: encoded[key] for key in ("x", "num_atoms", "batch")}
    assert torch.equal(vae.decode(fewer)["lengths"], vae.decode(encoded)["lengths"])
    with pytest.raises(ValueError, match=r"\['x'\] missing"):
        vae.decode({key: encoded[key] for key in ("num_atoms", "batch")})


def test_encode_does_not_change_the_batch(batch):
    before = copy.deepcopy(batch)
    make_vae().encode(batch)
    for key in ("atom_types", "frac_coords", "lattices", "num_atoms"):
        assert torch.equal(before[key], batch[key])


def test_composition_is_given_and_used_in_csp(batch):
    vae = make_vae(atom_type_predict=False)
    encoded = vae.encode(batch)
    out = vae.decode(encoded)
    assert "atom_types" not in out
    assert torch.equal(vae.reconstruct(out, batch).atom_types, batch.atom_types)
    other = {**encoded, "atom_types": encoded["atom_types"] + 1}
    assert not torch.allclose(vae.decode(other)["frac_coords"], out["frac_coords"])
    with pytest.raises(ValueError, match="atom_types"):
        vae.decode({key: encoded[key] for key in ("x", "num_atoms", "batch")})


def test_sample_needs_num_atoms_alone():
    vae = make_vae()
    ask = CrystalBatch.for_sampling(torch.tensor([2, 1, 6]))
    only = SimpleNamespace(num_atoms=ask.num_atoms)
    samples = vae.sample(only, generator=torch.Generator().manual_seed(0))
    assert samples.num_atoms.tolist() == [2, 1, 6]
    again = vae.sample(ask, generator=torch.Generator().manual_seed(0))
    assert torch.equal(samples.lattices, again.lattices)
    structures = vae.sample(ask, return_structures=True)
    assert [len(s) for s in structures] == [2, 1, 6]
    assert all(isinstance(s, Structure) for s in structures)
    assert all(isinstance(a, Atoms) for a in vae.sample(ask, return_atoms=True))


def test_sample_keeps_the_composition_in_csp():
    ask = CrystalBatch.for_sampling(torch.tensor([2, 1]), torch.tensor([11, 17, 26]))
    samples = make_vae(atom_type_predict=False).sample(ask)
    assert samples.atom_types.tolist() == [11, 17, 26]


# Symmetries that hold by construction


def permuted(batch: CrystalBatch) -> tuple[CrystalBatch, torch.Tensor]:
    parts = [torch.randperm(int(n)) for n in batch.num_atoms]
    order = torch.cat([p + s for p, s in zip(parts, batch.ptr, strict=False)])
    return batch.replace(batch.atom_types[order], batch.frac_coords[order]), order


def test_encoder_and_decoder_are_permutation_equivariant(batch):
    vae = make_vae()
    shuffled, order = permuted(batch)
    mean, other = (vae.encode(b)["posterior"].mean for b in (batch, shuffled))
    torch.testing.assert_close(other, mean[order], rtol=1e-4, atol=1e-5)
    out, other_out = (vae.decode(vae.encode(b)) for b in (batch, shuffled))
    torch.testing.assert_close(other_out["lengths"], out["lengths"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        other_out["atom_types"], out["atom_types"][order], rtol=1e-4, atol=1e-5
    )


def test_the_index_embedding_breaks_that(batch):
    vae = make_vae(encoder={"index_embedding": True})
    shuffled, order = permuted(batch)
    mean, other = (vae.encode(b)["posterior"].mean for b in (batch, shuffled))
    assert (other - mean[order]).abs().max() > 1e-3


def test_rotations_and_whole_cells_cannot_matter(batch):
    vae = make_vae()
    mean = vae.encode(batch)["posterior"].mean
    rotated = random_rotation(batch)
    assert not torch.allclose(rotated.lattices, batch.lattices)
    torch.testing.assert_close(vae.encode(rotated)["posterior"].mean, mean, rtol=1e-4, atol=1e-5)
    moved = batch.replace(frac_coords=batch.frac_coords + torch.tensor([2.0, -1.0, 1.0]))
    torch.testing.assert_close(vae.encode(moved)["posterior"].mean, mean, rtol=1e-3, atol=1e-4)
    translated = random_translation(batch)
    assert (vae.encode(translated)["posterior"].mean - mean).abs().max() > 1e-3


def test_crystals_of_a_batch_do_not_see_each_other(batch):
    vae = make_vae()
    together = vae.encode(batch)["posterior"].mean.split(batch.num_atoms.tolist())
    for one, expected in zip(batch.to_structure(), together, strict=True):
        alone = vae.encode(CrystalBatch.from_structures([one]))["posterior"].mean
        torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)


# Training


@pytest.mark.parametrize("predict", [True, False], ids=["dng", "csp"])
@pytest.mark.parametrize("forms", [({}, {}), (RAW_ENCODER, RAW_DECODER)], ids=["torus", "raw"])
def test_every_parameter_gets_a_gradient(batch, predict, forms):
    vae = make_vae(predict, *forms).train()
    vae.log = vae.log_dict = lambda *args, **kwargs: None
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    vae._trainer = trainer
    vae.training_step(batch, 0).backward()
    without = [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_masked_types_are_hidden_from_the_encoder_alone(batch):
    vae = make_vae(atom_type_predict=False).train()
    vae.mask_ratio = 1.0
    vae._trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    seen = {}
    for name, part in (("encoder", vae.encoder), ("decoder", vae.decoder)):
        part.atom_type_embedder.register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: args[0]})
        )
    vae.training_step(batch, 0)
    assert not seen["encoder"].any()
    assert torch.equal(seen["decoder"], batch.atom_types)


def test_sharded_gradients_are_clipped_by_the_strategy(monkeypatch):
    """Only the strategy knows the norm over all shards; there are no GPUs to shard over here."""
    vae = make_vae()
    trainer = vae._trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    weight = vae.quant_conv.bias
    weight.grad = torch.full_like(weight, 3.0)
    vae.configure_gradient_clipping(None, 1.0, "norm")
    assert vae.last_step["grad_norm"] == pytest.approx(3.0 * len(weight) ** 0.5)
    assert weight.grad.norm() == pytest.approx(1.0, rel=1e-4)

    class Sharded:
        def clip_grad_norm_(self, limit: float) -> float:
            return 7.0 * limit

    class Strategy(FSDPStrategy):
        model = Sharded()
        precision_plugin = trainer.strategy.precision_plugin

        def __init__(self) -> None:
            pass

    monkeypatch.setattr(trainer._accelerator_connector, "strategy", Strategy())
    vae.configure_gradient_clipping(None, 2.0, "norm")
    assert vae.last_step["grad_norm"] == 14.0


def test_the_randomness_of_a_step_is_a_function_of_seed_and_step(batch):
    vae = make_vae()
    vae._trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, accumulate_grad_batches=2
    )
    torch.manual_seed(5)
    first = vae._augment(batch, vae.step_generator(0)).frac_coords
    torch.rand(7)  # what else draws from the global generator must not matter
    assert torch.equal(first, vae._augment(batch, vae.step_generator(0)).frac_coords)
    assert torch.equal(first, vae._augment(batch, vae.step_generator(2)).frac_coords)
    # of the batches that make one step, each has its own
    assert not torch.equal(first, vae._augment(batch, vae.step_generator(1)).frac_coords)
    torch.manual_seed(6)
    assert not torch.equal(first, vae._augment(batch, vae.step_generator(0)).frac_coords)


@pytest.fixture
def noisy() -> VAEModule:
    vae = make_vae()
    vae.latent_noise, vae.noise_share = 0.2, 0.25
    vae._trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    return vae


def test_noise_on_the_latents_follows_their_spread(noisy, batch, monkeypatch):
    """Its standard deviation is the level of the crystal times the spread of the channel."""
    levels = torch.tensor([0.05, 0.1, 0.2])
    encoded = []
    predict = noisy._predict
    monkeypatch.setattr(noisy, "_predict", lambda x: encoded.append(x) or predict(x))

    def noise_of_a_step(seed: int) -> torch.Tensor:
        encoded.clear()
        for level in (0 * levels, levels):
            draw = lambda *_, level=level: (level, torch.ones_like(level))  # noqa: E731
            monkeypatch.setattr("src.vae_module.latent_noise.draw_noise_levels", draw)
            torch.manual_seed(seed)
            noisy.training_step(batch, 0)
        without, with_noise = encoded
        assert torch.equal(without["posterior"].mean, with_noise["posterior"].mean)
        spread = without["posterior"].mean.std(dim=0, correction=0)
        return (with_noise["x"] - without["x"]).detach() / (levels[batch.batch, None] * spread)

    noise = torch.stack([noise_of_a_step(seed) for seed in range(60)])
    assert noise.mean().item() == pytest.approx(0, abs=0.1)
    for crystal in range(3):
        part = noise[:, batch.batch == crystal]
        assert part.square().mean().sqrt().item() == pytest.approx(1, rel=0.15)
    rms = noise.square().mean(dim=(0, 1)).sqrt()
    torch.testing.assert_close(rms, torch.ones(5), rtol=0.1, atol=0)


def test_crystals_with_noise_teach_types_alone(noisy, batch, monkeypatch):
    everyone = torch.full((len(batch.num_atoms),), 0.2)
    monkeypatch.setattr(
        "src.vae_module.latent_noise.draw_noise_levels", lambda *_: (everyone, 0 * everyone)
    )
    noisy.training_step(batch, 0).backward()
    decoder = noisy.decoder
    for head in (decoder.frac_coords_head, decoder.lattice_head):
        assert not head.weight.grad.any()
    assert decoder.atom_types_head.weight.grad.any()
    with_noise = noisy.last_step["atom_types_loss"]
    noisy.latent_noise = 0.0
    noisy.training_step(batch, 0).backward()
    assert noisy.last_step["atom_types_loss"] != with_noise
    assert decoder.frac_coords_head.weight.grad.any()


def test_given_types_have_no_noise(batch, monkeypatch):
    """Noise would have nothing to teach the decoder then."""
    vae = make_vae(atom_type_predict=False)
    vae._trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    monkeypatch.setattr(
        "src.vae_module.latent_noise.draw_noise_levels", lambda *_: pytest.fail("noise was drawn")
    )
    assert vae.latent_noise > 0
    vae.training_step(batch, 0).backward()
    assert vae.decoder.frac_coords_head.weight.grad.any()


@pytest.mark.parametrize("delta", [None, 0.5])
def test_deltas_shape_the_loss(batch, delta):
    vae = make_vae()
    vae.coords_delta, vae.lengths_delta = delta, None if delta is None else 0.1
    vae.validation_step(batch, 0)
    found = vae.val_figures.losses.compute()
    prediction = vae._predict(vae.encode(batch))
    for name, loss, predicted, true in (
        ("frac_coords", frac_coords_loss, prediction.coords, batch.frac_coords),
        ("lengths", lengths_loss, prediction.lengths_scaled, batch.lengths_scaled),
    ):
        expected = loss(predicted, true, getattr(vae, name.removeprefix("frac_") + "_delta"))
        assert found[name].item() == pytest.approx(expected.mean().item())
        assert found[name].item() != pytest.approx(loss(predicted, true).mean().item())


# Configs and checkpoints


@pytest.mark.parametrize(("name", "default"), [("coords_delta", 0.05), ("lengths_delta", 0.5)])
def test_checkpoints_without_deltas_had_squared_errors(tmp_path, name, default):
    path = save(make_vae(), tmp_path / "vae.ckpt")
    assert getattr(VAEModule.load_from_checkpoint(path), name) == default
    content = torch.load(path, weights_only=True)
    del content["hyper_parameters"][name]
    torch.save(content, path)
    assert getattr(VAEModule.load_from_checkpoint(path), name) is None
    assert getattr(VAEModule.load_from_checkpoint(path, **{name: 0.1}), name) == 0.1


def save(vae: VAEModule, path: Path) -> Path:
    save_checkpoint(vae, path)
    return path


@pytest.mark.parametrize("predict", [True, False], ids=["dng", "csp"])
def test_a_checkpoint_needs_nothing_but_itself(batch, predict, tmp_path):
    vae = make_vae(predict, RAW_ENCODER, RAW_DECODER)
    path = save(vae, tmp_path / "vae.ckpt")
    plain = torch.load(path, weights_only=True)
    assert plain["hyper_parameters"]["encoder"]["d_model"] == 32
    for kwargs in ({}, {"weights_only": False}):
        loaded = VAEModule.load_from_checkpoint(path, **kwargs)
        assert not loaded.training
        expected, found = (v.decode(v.encode(batch)) for v in (vae, loaded))
        for key in expected:
            assert torch.equal(expected[key], found[key])


def write_tables(folder: Path, num: dict[str, int]) -> Path:
    """Crystals with one oxygen and one metal atom each."""
    folder.mkdir()
    coords = np.array([[0.0] * 3, [0.5] * 3])
    for split, count in num.items():
        pairs = [np.array([8, 20 + i]) for i in range(count)]
        cifs = [write_cif(Crystal(4 * np.eye(3), pair, coords), "any") for pair in pairs]
        table = pd.DataFrame({"material_id": range(count), "cif": cifs})
        table.to_csv(folder / f"{split}.csv", index=False)
    return folder


def fit(
    vae: VAEModule,
    folder: Path,
    max_epochs: int = 1,
    ckpt_path: Path | None = None,
    **read_options,
) -> Trainer:
    trainer = Trainer(
        accelerator="cpu", max_epochs=max_epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = DataModule(folder, batch_size=4, cache_dir=folder / "cache", **read_options)
    trainer.fit(vae.train(), datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def census(num: int) -> dict:
    metals = {str(20 + i): 1 for i in range(num)}
    return {"num_crystals": num, "num_atoms": {"2": num}, "elements": {"8": num, **metals}}


def test_what_it_was_trained_on_travels_with_it(tmp_path):
    vae = make_vae()
    assert vae.training_set is None
    trainer = fit(vae, write_tables(tmp_path / "data", {"train": 3, "val": 2}))
    assert vae.training_set == census(3)
    lightning, own = tmp_path / "lightning.ckpt", tmp_path / "own.ckpt"
    trainer.save_checkpoint(lightning)
    save_checkpoint(vae, own)
    for path in (lightning, own):
        assert torch.load(path, weights_only=True)["training_set"] == census(3)
        assert VAEModule.load_from_checkpoint(path).training_set == census(3)

    # validation is no training, on whatever it is
    other = write_tables(tmp_path / "other", {"train": 5, "val": 1})
    data = DataModule(other, cache_dir=other / "cache")
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.validate(vae, data, verbose=False)
    assert vae.training_set == census(3)


def test_how_its_crystals_were_read_travels_with_it(tmp_path):
    vae = make_vae()
    assert vae.read_options is None
    folder = write_tables(tmp_path / "data", {"train": 3, "val": 2})
    trainer = fit(vae, folder, cell="conventional", max_num_atoms=7)
    expected = {
        "cell": "conventional", "max_num_atoms": 7, "max_atomic_number": 99, "min_distance": 0.5,
    }  # fmt: skip
    assert vae.read_options == expected
    lightning, own = tmp_path / "lightning.ckpt", tmp_path / "own.ckpt"
    trainer.save_checkpoint(lightning)
    save_checkpoint(vae, own)
    for path in (lightning, own):
        assert torch.load(path, weights_only=True)["read_options"] == expected
        assert VAEModule.load_from_checkpoint(path).read_options == expected

    # a run that goes on with it has its own data
    again = make_vae()
    fit(again, folder, max_epochs=2, ckpt_path=lightning, cell="primitive")
    assert again.read_options["cell"] == "primitive"


def test_a_checkpoint_from_before_there_was_a_census(tmp_path):
    vae = make_vae()
    folder = write_tables(tmp_path / "data", {"train": 3, "val": 1})
    path = tmp_path / "vae.ckpt"
    fit(vae, folder).save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    del content["training_set"]
    torch.save(content, path)
    assert VAEModule.load_from_checkpoint(path).training_set is None

    again = make_vae()
    fit(again, folder, max_epochs=2, ckpt_path=path)  # that run knows what it goes on with
    assert again.training_set == census(3)


def test_a_model_that_saw_no_data_of_ours_says_so(tmp_path):
    vae = make_vae()
    save_checkpoint(vae, tmp_path / "vae.ckpt")
    assert VAEModule.load_from_checkpoint(tmp_path / "vae.ckpt").training_set is None
    folder = write_tables(tmp_path / "data", {"train": 2, "val": 1})
    data = DataModule(folder, batch_size=2, cache_dir=folder / "cache")
    trainer = Trainer(accelerator="cpu", fast_dev_run=True, enable_progress_bar=False)
    # loaders alone do not tell of what
    trainer.fit(vae.train(), data.train_dataloader(), data.val_dataloader())
    assert vae.training_set is None


def test_networks_can_be_given_as_configs():
    vae = make_vae()
    again = VAEModule(**vae.hparams)
    assert again.hparams == vae.hparams
    shapes = [p.shape for p in vae.parameters()]
    assert [p.shape for p in again.parameters()] == shapes


def test_files_that_are_no_checkpoint_of_ours_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ckpt"):
        VAEModule.load_from_checkpoint(tmp_path / "nowhere.ckpt")
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": {"lr": 1.0}}, other)
    with pytest.raises(CheckpointError, match=r"other\.ckpt is not a checkpoint of VAEModule"):
        VAEModule.load_from_checkpoint(other)
    path = save(make_vae(), tmp_path / "vae.ckpt")
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["encoder"]["_target_"] = "os.system"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="not among the allowed modules"):
        VAEModule.load_from_checkpoint(path)


def test_arguments_that_contradict_are_refused():
    encoder, decoder = TransformerEncoder(**SIZES), TransformerDecoder(**SIZES)
    with pytest.raises(ValueError, match="atom_type_predict"):
        VAEModule(encoder, decoder, atom_type_predict=False)
    with pytest.raises(ValueError, match="loss_weights"):
        VAEModule(encoder, decoder, loss_weights={"energy": 1.0})
    with pytest.raises(ValueError, match="coords_delta=0"):
        VAEModule(encoder, decoder, coords_delta=0)
    with pytest.raises(ValueError, match="noise_share=1"):
        VAEModule(encoder, decoder, noise_share=1)
    with pytest.raises(ValueError, match="translate must be true, false or half, not 'quarter'"):
        VAEModule(encoder, decoder, translate="quarter")
    with pytest.raises(ValueError, match="coords_input"):
        TransformerEncoder(**SIZES, coords_input="polar")
