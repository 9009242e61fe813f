"""Encoding a data set: the function and the command."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from src.commands.encode import encode, encode_dataset
from src.data import CrystalBatch, DataError, DataModule
from src.data.latents import LatentDataset
from src.metrics.matching import match_pairs
from src.metrics.reconstruction.evaluate import reconstruct_batches
from src.utils.checkpoints import CheckpointError, save_checkpoint
from src.utils.output import OutputError
from src.vae_module import VAEModule
from src.vae_module.decoders.transformer import TransformerDecoder
from src.vae_module.encoders.transformer import TransformerEncoder

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"d_model": 16, "nhead": 2, "num_layers": 1, "dim_feedforward": 16}
NUM = {"train": 60, "val": 20}


def make_vae(atom_type_predict: bool = True) -> VAEModule:
    torch.manual_seed(0)
    decoder = TransformerDecoder(**SIZES, atom_type_predict=atom_type_predict)
    return VAEModule(TransformerEncoder(**SIZES), decoder, latent_dim=4).eval()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """A few of the included crystals, with a property, in two splits."""
    folder = tmp_path_factory.mktemp("data")
    for split, num in NUM.items():
        table = pd.read_csv(ROOT / "data" / "prototypes" / f"{split}.csv", nrows=num)
        table["gap"] = np.where(np.arange(num) == 3, np.nan, np.arange(num) / 2)
        table.to_csv(folder / f"{split}.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def data(data_dir, tmp_path_factory) -> DataModule:
    return DataModule(data_dir, properties=["gap"], cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture
def make_config(data, data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("PROJECT_ROOT", str(tmp_path))
    save_checkpoint(make_vae(), tmp_path / "vae.ckpt")

    def make(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            return compose(
                "encode_vae",
                overrides=[
                    "data=default", f"data.data_dir={data_dir}", "data.properties=[gap]",
                    f"data.cache_dir={data.cache_dir}", "data.eval_batch_size=7", "device=cpu",
                    f"ckpt_path={tmp_path / 'vae.ckpt'}", f"output={tmp_path / 'latents'}",
                    "splits=[train,val]", *overrides,
                ],
            )  # fmt: skip

    return make


def decode(vae: VAEModule, latents: LatentDataset, batch_size: int) -> list[CrystalBatch]:
    """Decode latents without the crystals that they came from."""
    found = []
    for indices in torch.arange(len(latents)).split(batch_size):
        batch = latents.batch(indices)
        ask = CrystalBatch.for_sampling(batch.num_atoms, batch.atom_types)
        with torch.no_grad():
            found.append(vae.reconstruct(vae.decode(batch.encoded()), ask))
    return found


# The function


@pytest.mark.parametrize("batch_size", [7, 60, 1000])
def test_each_atom_has_its_posterior_in_the_order_of_the_data(data, batch_size):
    vae, dataset = make_vae(), data.dataset("train")
    latents = encode_dataset(vae, dataset, batch_size)
    assert latents.mean.dtype == latents.logvar.dtype == torch.float32
    assert latents.mean.shape == latents.logvar.shape == (len(dataset.atom_types), 4)
    assert latents.ids == dataset.ids
    for i in (0, 17, 59):
        with torch.no_grad():
            posterior = vae.encode(dataset.batch(torch.tensor([i])))["posterior"]
        torch.testing.assert_close(latents[i].mean, posterior.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(latents[i].logvar, posterior.logvar, rtol=1e-4, atol=1e-5)
        assert torch.equal(latents[i].atom_types, dataset[i].atom_types)
        assert latents[i].y["gap"] == i / 2
    assert torch.isnan(latents[3].y["gap"]).item()


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_put_back(data, training):
    vae = make_vae().train(training)
    assert not encode_dataset(vae, data.dataset("val"), 7).mean.requires_grad
    assert vae.training is training


# What is written


@pytest.mark.parametrize("predict", [True, False], ids=["dng", "csp"])
def test_latents_that_are_read_decode_to_what_a_reconstruction_is(
    make_config, data, tmp_path, predict
):
    vae = make_vae(predict)
    save_checkpoint(vae, tmp_path / "vae.ckpt")
    encode(make_config())
    for split, num in NUM.items():
        dataset = data.dataset(split)
        latents = LatentDataset.load(tmp_path / "latents", split)
        assert len(latents) == num
        parts = torch.arange(num).split(7)
        _, direct = reconstruct_batches(vae, [dataset.batch(indices) for indices in parts])
        for found, expected in zip(decode(vae, latents, 7), direct, strict=True):
            for name in ("atom_types", "frac_coords", "lattices", "num_atoms"):
                assert torch.equal(found[name], expected[name]), name


def test_the_stats_say_what_the_latents_are(make_config, data, data_dir, tmp_path):
    stats = encode(make_config())
    assert json.loads((tmp_path / "latents" / "stats.json").read_text()) == stats
    latents = LatentDataset.load(tmp_path / "latents", "train")
    mean = latents.mean.numpy().astype(np.float64)
    np.testing.assert_allclose(stats["mean"], mean.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(stats["std"], mean.std(axis=0), rtol=1e-10)
    content = (tmp_path / "vae.ckpt").read_bytes()
    assert stats["checkpoint_sha256"] == hashlib.sha256(content).hexdigest()
    assert stats["checkpoint"].endswith("vae.ckpt")
    assert stats["latent_dim"] == 4
    assert stats["data_dir"] == str(data_dir)
    assert stats["read_options"]["cell"] == "niggli"
    for split, num in NUM.items():
        cost = stats["splits"][split]
        assert cost["crystals"] == num
        assert cost["atoms"] == len(data.dataset(split).atom_types)
        assert cost["crystals_per_second"] == pytest.approx(num / cost["seconds"])
    assert stats["total"]["crystals"] == 80
    assert stats["total"]["seconds"] == sum(c["seconds"] for c in stats["splits"].values())


def test_without_the_training_split_there_are_no_moments(make_config, tmp_path, caplog):
    stats = encode(make_config("splits=[val]"))
    assert stats["mean"] is None
    assert "stats.json has no mean and std" in caplog.text
    assert sorted(p.name for p in (tmp_path / "latents").iterdir()) == [
        "stats.json",
        "val.safetensors",
    ]
    with pytest.raises(DataError, match="moments of the training split are missing"):
        LatentDataset.load(tmp_path / "latents", "val").normalize(torch.zeros(4))


# What cannot be done


def test_results_are_replaced_only_when_asked(make_config, tmp_path):
    encode(make_config())
    with pytest.raises(OutputError, match="latents exists"):
        encode(make_config())
    encode(make_config("overwrite=true", "splits=val"))
    assert not (tmp_path / "latents" / "train.safetensors").exists()
    (tmp_path / "latents" / "stats.json").unlink()
    with pytest.raises(OutputError, match=r"no stats\.json"):
        encode(make_config("overwrite=true"))


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["splits=[val,test]"], DataError, r"no split 'test' \(it has train, val\)"),
        (["splits=[]"], ValueError, "splits is empty"),
        (["ckpt_path=nowhere.ckpt"], FileNotFoundError, r"no checkpoint nowhere\.ckpt"),
        (["data.data_dir=nowhere"], DataError, "There is no folder nowhere"),
    ],
)
def test_input_that_cannot_be_used_leaves_nothing_behind(
    make_config, tmp_path, overrides, error, message
):
    with pytest.raises(error, match=message):
        encode(make_config(*overrides))
    assert [path.name for path in tmp_path.iterdir()] == ["vae.ckpt"]


def test_a_broken_checkpoint_leaves_nothing_behind(make_config, tmp_path):
    path = tmp_path / "vae.ckpt"
    cfg = make_config()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"vae\.ckpt is damaged"):
        encode(cfg)
    assert [path.name for path in tmp_path.iterdir()] == ["vae.ckpt"]


def test_an_encoding_that_fails_half_way_leaves_nothing_behind(make_config, tmp_path, monkeypatch):
    cfg = make_config()

    def fail(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(LatentDataset, "moments", fail)  # train.safetensors is written then
    with pytest.raises(KeyboardInterrupt):
        encode(cfg)
    assert [path.name for path in tmp_path.iterdir()] == ["vae.ckpt"]


# The command, with a model that has learned something


@pytest.mark.slow
def test_the_latents_of_a_trained_model_decode_to_the_crystals(trained_run, tmp_path):
    checkpoint = trained_run / "checkpoints" / "best.ckpt"
    command = [
        sys.executable, str(ROOT / "src" / "encode_vae.py"), f"ckpt_path={checkpoint}",
        "output=latents", "splits=[train,val]",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "COLUMNS": "120"}
    run = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run(command, **run)
    assert done.returncode == 0, done.stderr
    assert "all: 5,500 crystals" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["latents"]

    vae = VAEModule.load_from_checkpoint(checkpoint)
    latents = LatentDataset.load(tmp_path / "latents", "val")
    found = [s for batch in decode(vae, latents, 256) for s in batch.to_structure()]
    data = DataModule(ROOT / "data" / "prototypes", cache_dir=trained_run.parent / "cache")
    dataset = data.dataset("val")
    true = dataset.batch(torch.arange(len(dataset))).to_structure()
    pairs = match_pairs(true, found, num_workers=2)
    assert np.mean([pair.matched for pair in pairs]) > 0.8

    again = subprocess.run(command, **run)
    assert again.returncode == 1
    assert "latents exists" in " ".join((again.stdout + again.stderr).split())
    lost = subprocess.run([*command[:2], "ckpt_path=nowhere.ckpt", "output=other"], **run)
    assert lost.returncode == 1
    assert "no checkpoint nowhere.ckpt" in " ".join((lost.stdout + lost.stderr).split())
    assert [path.name for path in tmp_path.iterdir()] == ["latents"]
