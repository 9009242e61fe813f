"""User-defined networks that have what docs/your_own_encoder.md requires, and nothing else."""

import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning import Trainer
from pymatgen.core import Lattice, Structure
from torch import Tensor, nn

from src.commands.encode import encode
from src.commands.evaluate import evaluate
from src.commands.reconstruct import reconstruct
from src.commands.sample import sample
from src.commands.train import train
from src.data import CrystalBatch, DataModule
from src.data.structures import write_structures
from src.nn.transformer import PackedTransformer, segment_mean
from src.utils.checkpoints import save_checkpoint
from src.vae_module import VAEModule
from src.vae_module.decoders.transformer import Prediction
from src.vae_module.reconstruction import reconstruct_structures
from src.vae_module.sampling import sample_crystals
from tests.crystals import rock_salt

ROOT = Path(__file__).resolve().parents[2]
ROCKSALT = rock_salt(5.6, "Na", "Cl")


class OwnEncoder(nn.Module):
    """Uses atomic numbers as plain numbers, so that it needs no embedding table."""

    def __init__(self, d_model: int = 8) -> None:
        super().__init__()
        self.d_model = d_model
        self.layer = nn.Linear(10, d_model)

    def forward(self, batch: CrystalBatch) -> Tensor:
        cells = torch.cat([batch.lengths_scaled, batch.angles_radians], dim=-1)[batch.batch]
        atoms = torch.cat([batch.atom_types[:, None] / 100, batch.frac_coords], dim=-1)
        return self.layer(torch.cat([atoms, cells], dim=-1))


class OwnDecoder(nn.Module):
    """The reverse of `OwnEncoder`."""

    def __init__(self, d_model: int = 8, atom_type_predict: bool = True) -> None:
        super().__init__()
        self.d_model, self.atom_type_predict = d_model, atom_type_predict
        self.atoms = nn.Linear(d_model + 1, 6)
        self.cell = nn.Linear(d_model, 6)
        self.types = nn.Linear(d_model, 119)
        with torch.no_grad():
            self.cell.weight.mul_(0.01)
            self.cell.bias.copy_(torch.tensor([3.0] * 3 + [1.6] * 3))

    def forward(self, x, num_atoms, batch, atom_types=None, max_num_atoms=None) -> Prediction:
        given = x.new_zeros(len(x)) if atom_types is None else atom_types / 100
        lengths, angles = self.cell(segment_mean(x, batch, num_atoms)).split(3, dim=-1)
        coords = self.atoms(torch.cat([x, given[:, None]], dim=-1)).unflatten(-1, (3, 2))
        logits = self.types(x) if self.atom_type_predict else None
        return Prediction(logits, coords, lengths, angles)


@pytest.fixture
def own(monkeypatch) -> ModuleType:
    """A module of the project with these classes, since checkpoints may name only such modules."""
    module = ModuleType("src.vae_module.own_networks")
    for cls in (OwnEncoder, OwnDecoder):
        monkeypatch.setattr(cls, "__module__", module.__name__)
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "val", "test"):
        rows = pd.read_csv(ROOT / "data" / "prototypes" / f"{split}.csv", nrows=8)
        rows.to_csv(folder / f"{split}.csv", index=False)
    return folder


def make_vae(predict: bool = True) -> VAEModule:
    torch.manual_seed(0)
    vae = VAEModule(
        OwnEncoder(), OwnDecoder(atom_type_predict=predict), latent_dim=4,
        optimizer={"_target_": "torch.optim.AdamW"},  # Muon is for Transformers
    )  # fmt: skip
    vae.training_set = {"num_crystals": 1, "num_atoms": {"2": 1}, "elements": {"8": 2}}
    return vae


@pytest.mark.parametrize("predict", [True, False], ids=["dng", "csp"])
def test_in_python(own, data_dir, tmp_path, predict):
    vae = make_vae(predict)
    data = DataModule(data_dir, batch_size=4, cache_dir=tmp_path / "cache")
    trainer = Trainer(
        max_steps=2, limit_val_batches=1, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(vae, data)
    trainer.validate(vae, data, verbose=False)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    vae.save_pretrained(tmp_path / "own")
    for again in (
        VAEModule.load_from_checkpoint(tmp_path / "own.ckpt"),
        VAEModule.from_pretrained(tmp_path / "own"),
    ):
        assert isinstance(again.encoder, OwnEncoder)
        batch = again.to_batch([ROCKSALT])
        assert again.encode(batch)["x"].shape == (8, 4)
        assert again.featurize([ROCKSALT]).pooled.shape == (1, 4)
        assert len(reconstruct_structures(again, [ROCKSALT])[0]) == 8
        ask = {"num_atoms": 3} if predict else {"compositions": ["AuO2"]}
        (found,) = sample_crystals(again, 5, **ask)
        assert found.num_atoms.tolist() == [3] * 5
        einsteinium = Structure(Lattice.cubic(3), ["Es"], [[0, 0, 0]])  # no table, no limit
        assert again.featurize([einsteinium]).pooled.isfinite().all()


@pytest.mark.parametrize("predict", [True, False], ids=["dng", "csp"])
def test_commands(own, data_dir, tmp_path, monkeypatch, predict):
    monkeypatch.setenv("PROJECT_ROOT", str(tmp_path))
    save_checkpoint(make_vae(predict), tmp_path / "own.ckpt")
    write_structures(tmp_path / "salt.cif", [ROCKSALT], ["salt"])
    data = ["data=default", f"data.data_dir={data_dir}"]
    for name, run, own_overrides in (
        ("sample_vae", sample, [
            f"output={tmp_path}/samples", "num_samples=4",
            *([] if predict else ["compositions=[NaCl]"]),
        ]),
        ("reconstruct", reconstruct, [
            f"output={tmp_path}/out", f"input={tmp_path}/salt.cif", "num_workers=0",
        ]),
        ("encode_vae", encode, [f"output={tmp_path}/latents", *data]),
        ("eval_vae", evaluate, [
            *data, f"output_dir={tmp_path}/eval", "num_workers=0", "num_probed=2", "report=false",
            "noise_levels=[0,1]",
        ]),
    ):  # fmt: skip
        overrides = [f"ckpt_path={tmp_path}/own.ckpt", "device=cpu", *own_overrides]
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            assert run(compose(name, overrides=overrides))


def test_the_training_command(own, data_dir, tmp_path, monkeypatch):
    """With the shipped decoder config, whose table is as large as the encoder's, if it has one; and
    compiled, which also works for networks that are not Transformers."""
    monkeypatch.setenv("PROJECT_ROOT", str(tmp_path))
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: compiled.append(type(self)))
    compiled: list[type] = []
    group = tmp_path / "configs" / "vae_module" / "encoder"
    group.mkdir(parents=True)
    (group / "own.yaml").write_text(f"_target_: {own.__name__}.OwnEncoder\nd_model: 8 # width\n")
    overrides = [
        f"hydra.searchpath=[file://{tmp_path}/configs]", "vae_module/encoder=own", "compile=true",
        "vae_module.decoder.d_model=16", "vae_module.decoder.nhead=2", "trainer=cpu",
        "vae_module.decoder.num_layers=1", "vae_module.decoder.dim_feedforward=16",
        "data=default", f"data.data_dir={data_dir}", "trainer.max_epochs=1", "callbacks=none",
        f"++paths.output_dir={tmp_path}/run", "eval.num_crystals=1", "eval.num_workers=0",
    ]  # fmt: skip
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train_vae", overrides=overrides)
    assert cfg.vae_module.decoder.max_num_elements == 100
    train(cfg)
    assert compiled == [OwnEncoder, PackedTransformer]
