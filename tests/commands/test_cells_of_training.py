"""A checkpoint that was moved away from its run: every command and method uses the right cells."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from src.commands.encode import encode
from src.commands.evaluate import evaluate
from src.commands.reconstruct import reconstruct
from src.commands.train import train
from src.data import DataModule
from src.data.cif import read_cif
from src.data.latents import LatentDataset
from src.data.structures import read_structures, to_structure, write_structures
from src.vae_module import VAEModule

ROOT = Path(__file__).resolve().parents[2]
NUM = 20
SIZES = [
    f"vae_module.{part}.{name}={value}"
    for part in ("encoder", "decoder")
    for name, value in (("d_model", 16), ("nhead", 2), ("num_layers", 1), ("dim_feedforward", 16))
]


def configure(name: str, folder: Path, *overrides: str) -> DictConfig:
    common = [f"data.data_dir={folder}/data", f"paths.cache_dir={folder}/cache"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose(name, overrides=[*(common if name != "reconstruct" else []), *overrides])


def run(folder: Path, name: str, *overrides: str) -> None:
    """Train on the data in `folder`."""
    train(configure(
        "train_vae", folder, "data=default", *SIZES, "vae_module.latent_dim=4", "trainer=cpu",
        "eval.num_crystals=2", "eval.num_workers=0", f"++paths.output_dir={folder}/{name}",
        *overrides,
    ))  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Contains data, and a checkpoint trained on conventional cells, without its run."""
    folder = tmp_path_factory.mktemp("moved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROJECT_ROOT", str(folder))
        (folder / "data").mkdir()
        for split in ("train", "val", "test"):
            rows = pd.read_csv(ROOT / "data" / "prototypes" / f"{split}.csv", nrows=NUM)
            rows.to_csv(folder / "data" / f"{split}.csv", index=False)
        run(
            folder, "run", "data.cell=conventional", "trainer.max_epochs=1",
            "callbacks=ema", "callbacks.progress_bar=null", "callbacks.match_rate.every_n_epochs=0",
        )  # fmt: skip
    shutil.move(folder / "run" / "checkpoints" / "best.ckpt", folder / "moved.ckpt")
    shutil.rmtree(folder / "run")
    return folder


@pytest.fixture
def vae(folder, monkeypatch) -> VAEModule:
    monkeypatch.setenv("PROJECT_ROOT", str(folder))
    return VAEModule.load_from_checkpoint(folder / "moved.ckpt")


@pytest.fixture
def latents(folder, vae) -> LatentDataset:
    """Latents of the crystals as they were in training."""
    data = DataModule(folder / "data", cell="conventional", cache_dir=folder / "cache")
    dataset = data.dataset("test")
    with torch.no_grad():
        mean = vae.encode(dataset.batch(torch.arange(NUM)))["x"]
    return LatentDataset(mean, mean, dataset.atom_types, dataset.num_atoms)


def test_in_python(folder, vae, latents, tmp_path):
    cifs = pd.read_csv(folder / "data" / "test.csv")["cif"]
    structures = [to_structure(read_cif(cif, niggli=False)) for cif in cifs]
    with torch.no_grad():
        found = vae.encode(vae.to_batch(structures))["x"]
    torch.testing.assert_close(found, latents.mean, rtol=1e-3, atol=1e-4)
    assert len(found) > sum(map(len, structures))  # or the test would show nothing
    vae.save_pretrained(tmp_path / "vae")
    again = VAEModule.from_pretrained(tmp_path / "vae").featurize(structures)
    pooled = [latents[i].mean.mean(0) for i in range(NUM)]
    torch.testing.assert_close(again.pooled, torch.stack(pooled), rtol=1e-3, atol=1e-4)


def test_encode(folder, vae, latents):
    cfg = configure(
        "encode_vae", folder, "data=prototypes", f"ckpt_path={folder}/moved.ckpt", "device=cpu",
        f"output={folder}/latents", "splits=[test]", "overwrite=true",
    )  # fmt: skip
    assert encode(cfg)["read_options"]["cell"] == "conventional"
    found = LatentDataset.load(folder / "latents", "test")
    torch.testing.assert_close(found.mean, latents.mean, rtol=1e-3, atol=1e-4)


def test_evaluate(folder, vae, latents):
    cfg = configure(
        "eval_vae", folder, "data=prototypes", f"ckpt_path={folder}/moved.ckpt", "device=cpu",
        f"output_dir={folder}/eval", "num_workers=0", "num_probed=0", "report=false",
        "overwrite=true",
    )  # fmt: skip
    evaluate(cfg)
    rows = pd.read_csv(folder / "eval" / "per_crystal.csv")
    assert rows["num_atoms"].tolist() == latents.num_atoms.tolist()
    assert json.loads((folder / "eval" / "metrics.json").read_text())["crystals_evaluated"] == NUM


def test_reconstruct(folder, vae, latents, tmp_path):
    structures = [
        to_structure(read_cif(cif, niggli=False))
        for cif in pd.read_csv(folder / "data" / "test.csv")["cif"]
    ]
    ids = [f"{i:02d}" for i in range(NUM)]
    write_structures(tmp_path / "given.extxyz", structures, ids)
    cfg = configure(
        "reconstruct", folder, f"ckpt_path={folder}/moved.ckpt", "device=cpu", "num_workers=0",
        f"input={tmp_path}/given.extxyz", f"output={tmp_path}/out",
    )  # fmt: skip
    reconstruct(cfg)
    found = {item.id: item.structure for item in read_structures(tmp_path / "out")[0]}
    with torch.no_grad():
        decoded = vae.decode(latents.batch(torch.arange(NUM)).encoded())
    for i, structure in enumerate(structures):
        if f"{i:02d}" in found:  # an untrained model may give cells without volume
            assert len(found[f"{i:02d}"]) == len(structure)
            # the cell of the reconstruction is that of the decoded one, taken back
            per_atom = found[f"{i:02d}"].volume / len(structure)
            lattice = decoded["lattices"][i]
            expected = float(torch.linalg.det(lattice)) / int(latents.num_atoms[i])
            assert per_atom == pytest.approx(expected, rel=1e-3)
    assert found


@pytest.mark.parametrize("cell", ["conventional", "primitive"])
def test_training_from_its_weights(folder, vae, caplog, cell):
    run(
        folder, f"from_weights_{cell}", f"ckpt_path={folder}/moved.ckpt", f"data.cell={cell}",
        "trainer.max_epochs=0", "callbacks=none",
    )  # fmt: skip
    warning = r"moved.ckpt were trained with data.cell=conventional, but this run has .*cell=(.*)"
    assert re.findall(warning, caplog.text) == ([] if cell == "conventional" else [cell])
