"""Elements that a model does not know are rejected by name, by every method and command."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning import Trainer
from pymatgen.core import Lattice, Structure
from torch import nn

from src.commands.encode import encode
from src.commands.evaluate import evaluate
from src.commands.reconstruct import reconstruct
from src.commands.sample import sample
from src.commands.train import train
from src.data import CrystalBatch, DataModule
from src.data.augmentation import mask_atom_types
from src.data.cif import Crystal, write_cif
from src.data.structures import write_structures
from src.utils.checkpoints import save_checkpoint
from src.utils.errors import UserError
from src.vae_module import VAEModule
from src.vae_module.decoders.transformer import TransformerDecoder
from src.vae_module.elements import find_unknown, table_size
from src.vae_module.encoders.transformer import TransformerEncoder
from src.vae_module.reconstruction import reconstruct_structures
from src.vae_module.sampling import sample_crystals

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"d_model": 16, "nhead": 2, "num_layers": 1, "dim_feedforward": 16}
SMALL = [
    f"vae_module.{part}.{name}={value}"
    for part in ("encoder", "decoder")
    for name, value in SIZES.items()
]
GOLD = Structure(Lattice.cubic(4), ["O", "Au"], [[0, 0, 0], [0.5, 0.5, 0.5]])
REFUSED = "Au has atomic number 79: the model knows elements 1 to 59"


def make_vae(predict: bool = True, encoder: int = 60, decoder: int = 60, **options) -> VAEModule:
    torch.manual_seed(0)
    return VAEModule(
        TransformerEncoder(**SIZES, max_num_elements=encoder),
        TransformerDecoder(**SIZES, max_num_elements=decoder, atom_type_predict=predict),
        latent_dim=4,
        **options,
    ).eval()


def write_data(folder: Path, heavy: str) -> Path:
    """Splits of four crystals of oxygen and iron; in one split, the third crystal contains gold."""
    folder.mkdir()
    coords = np.array([[0.0] * 3, [0.5] * 3])
    for split in ("train", "val", "test"):
        metals = [26, 26, 79 if split == heavy else 26, 26]
        cifs = [
            write_cif(Crystal(4 * np.eye(3), np.array([8, metal]), coords), "x") for metal in metals
        ]
        ids = [f"{split}-{i}" for i in range(4)]
        pd.DataFrame({"material_id": ids, "cif": cifs}).to_csv(folder / f"{split}.csv", index=False)
    return folder


@pytest.fixture
def data(tmp_path):
    def make(heavy: str) -> DataModule:
        folder = write_data(tmp_path / heavy, heavy)
        return DataModule(folder, batch_size=2, cache_dir=tmp_path / "cache")

    return make


@pytest.fixture
def trainer(tmp_path) -> Trainer:
    return Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip


# In training


class NoStep(TransformerEncoder):
    def forward(self, batch):
        raise AssertionError("a step was made")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_training_does_not_begin(data, trainer, monkeypatch, split):
    monkeypatch.setattr(TransformerEncoder, "forward", NoStep.forward)
    datamodule = data(split)
    with pytest.raises(UserError) as error:
        trainer.fit(make_vae(), datamodule)
    assert str(error.value) == (
        f"split {split} of {datamodule.data_dir}: crystal {split}-2: {REFUSED}. To leave such "
        "crystals out, set data.max_atomic_number=59; to train on them, raise "
        "vae_module.encoder.max_num_elements"
    )


@pytest.mark.parametrize("split", ["val", "test"])
def test_validation_and_test(data, trainer, split):
    datamodule = data(split)
    run = trainer.validate if split == "val" else trainer.test
    with pytest.raises(UserError, match=rf"split {split} of .*crystal {split}-2: {REFUSED}"):
        run(make_vae(), datamodule)
    other = trainer.test if split == "val" else trainer.validate
    other(make_vae(), datamodule, verbose=False)


@pytest.mark.parametrize("split", ["train", "val"])
def test_loaders_alone(data, trainer, monkeypatch, split):
    """On a GPU, nothing else would check the batches."""
    monkeypatch.setattr("src.vae_module.vae_module.check_types", lambda *_, **__: None)
    datamodule = data(split)
    loaders = datamodule.train_dataloader(), datamodule.val_dataloader()
    with pytest.raises(UserError, match=f"crystal {split}-2: {REFUSED}"):
        trainer.fit(make_vae().train(), *loaders)


def test_a_table_that_the_loss_needs_is_that_of_the_decoder(data, trainer):
    with pytest.raises(UserError, match="Au has atomic number 79: the model knows elements 1 to 4"):
        trainer.fit(make_vae(encoder=100, decoder=50), data("train"))
    trainer.fit(make_vae(encoder=80, decoder=80).train(), data("val"))


def test_the_command(data, tmp_path, monkeypatch):
    """With the shipped configs; the remedies in the message work."""
    monkeypatch.setenv("PROJECT_ROOT", str(tmp_path))
    folder = data("train").data_dir
    common = [
        "data=default", f"data.data_dir={folder}", *SMALL, "trainer=cpu", "trainer.max_epochs=1",
        "callbacks=none", "eval.num_crystals=1", "eval.num_workers=0",
    ]  # fmt: skip

    def run(name: str, *overrides: str) -> None:
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            given = [*common, f"++paths.output_dir={tmp_path / name}", *overrides]
            train(compose("train_vae", overrides=given))

    with pytest.raises(UserError, match=f"split train of .*crystal train-2: {REFUSED}"):
        run("a", "vae_module.encoder.max_num_elements=60")
    run("b", "vae_module.encoder.max_num_elements=60", "data.max_atomic_number=59",
        "data.max_rejected=0.5")  # fmt: skip
    run("c", "vae_module.encoder.max_num_elements=80")


# With a trained model


@pytest.mark.parametrize("predict", [True, False], ids=["dng", "csp"])
def test_public_calls(predict):
    vae = make_vae(predict)
    good = Structure(Lattice.cubic(4), ["O", "Fe"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    batch = CrystalBatch.from_structures([good, GOLD])
    with pytest.raises(UserError, match=f"crystal 1 of the batch: {REFUSED}"):
        vae.encode(batch)
    for call in (vae.to_batch, vae.featurize, lambda given: reconstruct_structures(vae, given)):
        with pytest.raises(ValueError, match=f"structure 1: {REFUSED}"):
            call([good, GOLD])
    encoded = vae.encode(CrystalBatch.from_structures([good]))
    assert vae.decode(encoded)["lengths"].shape == (1, 3)


def test_compositions():
    vae = make_vae(predict=False)
    with pytest.raises(UserError, match=f"composition AuO: {REFUSED}"):
        sample_crystals(vae, 2, compositions=["FeO", "AuO"])
    ask = CrystalBatch.for_sampling(torch.tensor([1, 2]), torch.tensor([26, 8, 79]))
    with pytest.raises(UserError, match=f"crystal 1 of the batch: {REFUSED}"):
        vae.sample(ask)
    x = torch.zeros(3, 4)
    encoded = {"x": x, **{name: ask[name] for name in ("num_atoms", "batch", "atom_types")}}
    with pytest.raises(UserError, match=f"crystal 1 of the batch: {REFUSED}"):
        vae.decode(encoded)
    with pytest.raises(UserError, match="crystal 0 of the batch: an atom has type 0, which is no"):
        vae.sample(CrystalBatch.for_sampling(torch.tensor([2, 1])))  # no composition at all


def test_the_decoders_table_is_that_of_given_types():
    vae = make_vae(predict=False, encoder=100, decoder=50)
    with pytest.raises(UserError, match=r"Au .*the model knows elements 1 to 49"):
        vae.encode(CrystalBatch.from_structures([GOLD]))
    # one that is to be predicted can only be predicted wrongly
    predicting = make_vae(encoder=100, decoder=50)
    predicting.decode(predicting.encode(CrystalBatch.from_structures([GOLD])))


@pytest.mark.parametrize("command", ["eval_vae", "encode_vae"])
def test_commands_on_data(data, tmp_path, monkeypatch, command):
    monkeypatch.setenv("PROJECT_ROOT", str(tmp_path))
    save_checkpoint(make_vae(), tmp_path / "vae.ckpt")
    folder = data("test").data_dir
    overrides = [
        f"ckpt_path={tmp_path}/vae.ckpt", "data=default", f"data.data_dir={folder}", "device=cpu",
    ]  # fmt: skip
    run, own = {
        "eval_vae": (evaluate, ["num_workers=0", "num_probed=0", "report=false"]),
        "encode_vae": (encode, ["splits=[train,test]", f"output={tmp_path}/latents"]),
    }[command]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose(command, overrides=[*overrides, *own])
    with pytest.raises(UserError, match=rf"split test of {folder}: crystal test-2: {REFUSED}"):
        run(cfg)
    assert not [path for path in tmp_path.iterdir() if path.name in ("latents", "eval_test")]


def test_commands_on_files_and_samples(tmp_path):
    save_checkpoint(make_vae(predict=False), tmp_path / "vae.ckpt")
    write_structures(tmp_path / "gold.cif", [GOLD], ["gold"])
    common = [f"ckpt_path={tmp_path}/vae.ckpt", f"output={tmp_path}/out", "device=cpu"]
    for command, run, own, message in (
        ("reconstruct", reconstruct, [f"input={tmp_path}/gold.cif"], f"gold.cif.*: {REFUSED}"),
        ("sample_vae", sample, ["compositions=[FeO,AuO]"], f"composition AuO: {REFUSED}"),
    ):
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            cfg = compose(command, overrides=[*common, *own])
        with pytest.raises(ValueError, match=message):
            run(cfg)
        assert not (tmp_path / "out").exists()


# The mask token


def test_masked_atoms_are_for_models_that_were_trained_with_them():
    good = Structure(Lattice.cubic(4), ["O", "Fe"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    masked = mask_atom_types(CrystalBatch.from_structures([good]), 1.0)
    make_vae(mask_ratio=0.1).encode(masked)
    with pytest.raises(UserError, match="crystal 0 of the batch: an atom has type 0, which is no"):
        make_vae().encode(masked)
    with pytest.raises(UserError, match="an atom has type -1, which is not an element"):
        make_vae(mask_ratio=0.1).encode(masked.replace(atom_types=masked.atom_types - 1))


# The function


def test_the_table_of_several_networks():
    class Without(nn.Module):
        pass

    class Null(nn.Module):
        max_num_elements = None

    vae = make_vae(encoder=100, decoder=50)
    assert table_size(vae.encoder, vae.decoder) == 50
    assert table_size(Without(), vae.encoder, Null()) == 100
    assert table_size(Without(), Null()) is table_size() is table_size(None) is None


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_the_heaviest_is_named(dtype):
    vae = make_vae()
    types = torch.tensor([8, 60, 26, 94, 79], dtype=dtype)
    expected = (3, "Pu has atomic number 94: the model knows elements 1 to 59")
    assert find_unknown(types, vae.encoder) == expected
    assert find_unknown(types[:1], vae.encoder) is None
    assert find_unknown(types[:0], vae.encoder) is None
    assert find_unknown(types, nn.Identity()) is None
    beyond = torch.tensor([8, 130], dtype=dtype)
    assert find_unknown(beyond, vae.encoder)[1].startswith("an element has atomic number 130")
    zero = torch.tensor([8, 0, 94], dtype=dtype)
    assert find_unknown(zero, nn.Identity())[0] == 1
    assert find_unknown(zero, vae.encoder, is_masked=True)[0] == 2
