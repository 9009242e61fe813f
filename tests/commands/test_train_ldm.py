"""Training latent diffusion models, and sampling from them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning import Callback

from src.commands.sample import sample_ldm, shard_of
from src.commands.train import train as train_vae
from src.commands.train_ldm import train_ldm
from src.ldm_module import LDMModule
from src.utils.checkpoints import CheckpointError, load_checkpoint
from src.utils.errors import UserError
from src.vae_module import VAEModule
from tests.ldm_module.conftest import make_ldm

ROOT = Path(__file__).resolve().parents[2]
VAE = ROOT / "data" / "prototypes" / "vae.ckpt"
FEW = ("data.max_num_atoms=4", "data.max_rejected=1", "data.num_workers=0")


def config(name: str, *overrides: str):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose(name, overrides=list(overrides))


class StopAfterTwoSteps(Callback):
    def on_train_batch_end(self, trainer, *_: object) -> None:
        trainer.should_stop = trainer.global_step == 2


def train(folder: Path, cache: Path, *overrides: str, callbacks=()) -> dict:
    given = [
        "experiment=prototypes/ldm_dng", "ldm_debug=fast", f"vae_ckpt_path={VAE}", *FEW,
        "trainer.accelerator=cpu", f"paths.output_dir={folder}", f"paths.cache_dir={cache}",
    ]  # fmt: skip
    return train_ldm(config("train_ldm", *given, *overrides), callbacks)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A short run."""
    folder = tmp_path_factory.mktemp("ldm")
    os.environ["PROJECT_ROOT"] = str(ROOT)
    train(
        folder / "run", folder / "cache", "trainer.log_every_n_steps=1",
        "ldm_module.conditions.properties=[density]", "ldm_module.guide_share=1",
    )  # fmt: skip
    return folder / "run"


def test_a_run(run):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["num_samples"] == 16
    assert 0 <= summary["valid_structure"] <= 1
    assert 0 <= summary["match_rate"] <= 1
    assert summary["steps"] == 3
    assert np.isfinite(summary["best_val_loss"])
    assert (run / "pictures" / "epoch_0001.png").is_file()
    best = LDMModule.load_from_checkpoint(run / "checkpoints" / "best.ckpt")
    vae = VAEModule.load_from_checkpoint(VAE)
    for one, other in zip(best.vae.parameters(), vae.parameters(), strict=True):
        # the average of equal weights is rounded
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0, check_device=False)
    assert best.read_options["cell"] == "niggli"
    assert best.training_set["num_crystals"] > 1000


def test_averaged_weights_are_saved(run):
    """Those of `best.ckpt` are the average; `current_model_state` has those of the last step."""
    averaged = load_checkpoint(run / "checkpoints" / "last.ckpt")
    name = "denoiser.head.bias"
    assert not torch.equal(averaged["state_dict"][name], averaged["current_model_state"][name])


def test_a_run_goes_on(run, tmp_path):
    """Stopped after two steps and resumed, it has the weights of an uninterrupted one."""
    cache = run.parent / "cache"
    options = (
        "eval.num_samples=0", "ldm_module.conditions.properties=[density]",
        "ldm_module.guide_share=1",  # so that it is still learning
    )  # fmt: skip
    begun = train(tmp_path / "run", cache, *options, callbacks=[StopAfterTwoSteps()])
    assert begun["steps"] == 2
    assert train(tmp_path / "run", cache, *options, "resume_from=last")["steps"] == 3
    whole, resumed = (
        load_checkpoint(folder / "checkpoints" / "last.ckpt")["current_model_state"]
        for folder in (run, tmp_path / "run")
    )
    differing = [name for name in whole if not torch.equal(whole[name], resumed[name])]
    assert [name for name in differing if not name.startswith("val_")] == []


def test_a_vae_of_another_cell_is_refused(run, tmp_path):
    with pytest.raises(UserError, match=r"niggli cells, but data.cell=conventional"):
        train(tmp_path, run.parent / "cache", "data.cell=conventional")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("logger=none", "callbacks=none", "ldm_module/optimizer=adamw"),
        ("logger=tensorboard", "ldm_module/scheduler=constant"),
        ("logger=none", "ldm_module.origins=random"),
    ],
)
def test_options_go_together(run, tmp_path, options):
    summary = train(tmp_path / "run", run.parent / "cache", "eval.num_samples=0", *options)
    assert summary["steps"] == 3


def test_callbacks_of_other_models_are_refused(run, tmp_path):
    with pytest.raises(UserError, match="MatchRate is for another kind of model"):
        train(tmp_path / "run", run.parent / "cache", "callbacks=default")
    cfg = config("train_vae", "callbacks=ldm", f"paths.output_dir={tmp_path / 'vae'}")
    with pytest.raises(UserError, match="SamplePictures is for another kind of model"):
        train_vae(cfg)


def test_a_missing_vae(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt.*src/train_vae\.py"):
        train(tmp_path, run.parent / "cache", "vae_ckpt_path=none.ckpt")


def sample(run: Path, output: Path, *overrides: str) -> dict:
    given = [f"ckpt_path={run}/checkpoints/best.ckpt", f"output={output}", "device=cpu"]
    return sample_ldm(config("sample_ldm", *given, "sampling_steps=3", *overrides))


def test_compositions_are_drawn_or_given(run, tmp_path):
    sample(run, tmp_path / "drawn", "num_samples=3", "num_atoms=4")
    assert [len(atoms) for atoms in crystals_in(tmp_path / "drawn")] == [4, 4, 4]
    sample(run, tmp_path / "given", "num_samples=2", "compositions=[NaCl,2*SrO]")
    given = [atoms.get_chemical_formula() for atoms in crystals_in(tmp_path / "given")]
    assert given == ["ClNa", "O2Sr2"]


def crystals_in(folder: Path) -> list:
    return ase.io.read(folder / "samples.extxyz", ":")


def test_samples_in_files(run, tmp_path):
    header = sample(run, tmp_path / "all", "num_samples=5", "++conditions.density=5")
    assert header["conditions"] == {"density": 5}
    content = json.loads((tmp_path / "all" / "samples.json").read_text())
    assert [row["id"] for row in content["samples"]] == [f"sample-{i:06d}" for i in range(5)]
    assert len(list((tmp_path / "all" / "cifs").iterdir())) == header["counts"]["written"]


def test_shards_together_are_the_whole(run, tmp_path):
    sample(run, tmp_path / "all", "num_samples=7")
    parts = []
    for number in (1, 2, 3):
        header = sample(run, tmp_path / "part", "num_samples=7", f"shard={number}/3")
        folder = tmp_path / f"part_{number}_of_3"
        assert header["shard"] == f"{number}/3"
        parts += crystals_in(folder)
    whole = crystals_in(tmp_path / "all")
    assert len(whole) == len(parts) == 7
    for one, other in zip(whole, parts, strict=True):
        assert one.info == other.info
        assert one.numbers.tolist() == other.numbers.tolist()
        np.testing.assert_allclose(one.cell.array, other.cell.array, atol=1e-3)


def test_which_samples_a_shard_has():
    assert shard_of(None, 10) == (range(10), None)
    parts = [shard_of(f"{i}/12", 100)[0] for i in range(1, 13)]
    assert [i for part in parts for i in part] == list(range(100))
    assert shard_of("3/12", 100)[1] == "03/12"
    for wrong in ("0/3", "4/3", "3", "a/b", "1/11"):
        with pytest.raises(UserError, match="shard="):
            shard_of(wrong, 10)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["++conditions.hardness=3"], "hardness"),
        (["sampling_steps=0"], "sampling_steps"),
        (["compositions=[NaCl]", "num_atoms=2"], "leave out num_atoms"),
        (["composition_temperature=0"], "composition_temperature"),
        (["format=tar"], "folder or zip"),
    ],
)
def test_requests_that_cannot_be_met(run, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        sample(run, tmp_path / "out", *overrides)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_a_vae_is_refused(tmp_path):
    cfg = config("sample_ldm", f"ckpt_path={VAE}", f"output={tmp_path / 'out'}")
    with pytest.raises(CheckpointError, match="not a checkpoint of LDMModule"):
        sample_ldm(cfg)


@pytest.mark.slow
def test_compositions_by_the_command(tmp_path):
    """As a user types it."""
    ldm = make_ldm(atom_type_predict=False)
    ldm.save_pretrained(tmp_path / "model")
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "src" / "sample_ldm.py"), f"ckpt_path={tmp_path}/model",
            "compositions=NaCl,2*SrTiO3", "conditions.density=5.2", "cfg_scale=2",
            "num_samples=4", "sampling_steps=2", f"output={tmp_path}/samples", "device=cpu",
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    formulas = [atoms.get_chemical_formula() for atoms in crystals_in(tmp_path / "samples")]
    assert formulas == ["ClNa", "O6Sr2Ti2"] * 2
