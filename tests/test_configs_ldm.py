"""Every config for latent diffusion models composes, its parts can be made, and it says what the
code says."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import get_class, instantiate
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from omegaconf import OmegaConf

from src.callbacks import SamplePictures
from src.commands.train_ldm import LDMTraining
from src.data import DataModule
from src.ldm_module import LDMModule
from src.ldm_module.compositions import CompositionModel
from src.ldm_module.conditions import Conditions
from src.ldm_module.denoisers import DiT
from src.utils.config import to_plain
from src.utils.schedules import Schedule
from src.vae_module import VAEModule
from tests.test_configs import CONFIGS, choices, defaults_of

VAE = CONFIGS.parent / "data" / "prototypes" / "vae.ckpt"
SMALL = [
    f"ldm_module.denoiser.{name}={value}"
    for name, value in (("d_model", 16), ("nhead", 2), ("num_layers", 1), ("dim_feedforward", 16))
]


@pytest.fixture
def make_config(tmp_path, monkeypatch):
    monkeypatch.setenv("PROJECT_ROOT", str(tmp_path))

    def make(*overrides: str):
        given = [f"vae_ckpt_path={VAE}", f"paths.output_dir={tmp_path / 'run'}", *overrides]
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return compose("train_ldm", overrides=given)

    return make


def of_ldm(name: str) -> bool:
    return "/ldm_" in name


@pytest.mark.parametrize("name", [name for name in choices("experiment") if of_ldm(name)])
def test_experiments(make_config, name):
    cfg = make_config(f"experiment={name}", "trainer=cpu", *SMALL)
    OmegaConf.resolve(cfg)
    callbacks = [instantiate(c) for c in cfg.callbacks.values() if c and "_target_" in c]
    assert all(isinstance(c, Callback) for c in callbacks)
    assert any(isinstance(c, WeightAveraging) for c in callbacks)
    assert any(isinstance(c, SamplePictures) for c in callbacks)
    ldm = LDMTraining().build(cfg)
    assert isinstance(ldm, LDMModule)
    assert isinstance(instantiate(cfg.data), DataModule)
    trainer = instantiate(cfg.trainer, logger=False, callbacks=callbacks)
    assert isinstance(trainer, Trainer)
    assert trainer.max_epochs == cfg.trainer.max_epochs >= 20
    assert cfg.task_name == name
    assert Path(cfg.data.data_dir).name == name.split("/")[0]


def test_there_is_one_for_every_experiment_with_a_vae():
    names = choices("experiment")
    of_vae = {name for name in names if not of_ldm(name)} - {"mp_20/vae_dng_medium"}
    assert {name.replace("/ldm_", "/vae_") for name in names if of_ldm(name)} == of_vae


def test_an_experiment_for_the_other_command_is_refused(make_config):
    with (
        initialize_config_dir(str(CONFIGS), version_base="1.3"),
        pytest.raises(ConfigCompositionException, match="ldm_module"),
    ):
        compose("train_vae", overrides=["experiment=mp_20/ldm_dng"])
    with pytest.raises(ConfigCompositionException):
        make_config("experiment=mp_20/vae_dng_small")


def test_sizes(make_config):
    assert choices("ldm_size") == ["small"]
    for overrides, millions in ([], 57), (["ldm_size=small"], 1.9):
        denoiser = to_plain(make_config(*overrides).ldm_module.denoiser)
        del denoiser["_target_"]
        size = sum(p.numel() for p in DiT(8, **denoiser).parameters())
        assert size / 1e6 == pytest.approx(millions, rel=0.05), overrides


@pytest.mark.parametrize("name", choices("ldm_debug"))
def test_debug(make_config, name):
    cfg = make_config("experiment=mp_20/ldm_csp", f"ldm_debug={name}")
    assert cfg.task_name == "debug"
    LDMTraining().build(cfg)


def test_groups():
    parts = {"denoiser/dit", "optimizer/adamw", "optimizer/muon"}
    parts |= {"scheduler/constant", "scheduler/warmup_cosine"}
    assert set(choices("ldm_module")) == parts | {"ldm_module"}


@pytest.mark.parametrize("name", ["constant", "warmup_cosine"])
def test_schedulers(make_config, name):
    ldm = LDMTraining().build(make_config(f"ldm_module/scheduler={name}", *SMALL))
    target = ldm.scheduler["_target_"]
    assert issubclass(get_class(target), Schedule)
    assert re.sub(r"(?<!^)(?=[A-Z])", "_", target.split(".")[-1]).lower() == name


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimizers(make_config, name):
    ldm = LDMTraining().build(make_config(f"ldm_module/optimizer={name}", *SMALL))
    assert ldm.optimizer["_target_"].split(".")[-1].lower() == name


def test_defaults_are_those_of_the_constructors(make_config):
    cfg = make_config().ldm_module
    of_vae = {"latent_dim", "atom_type_input"}
    expected = defaults_of(DiT)
    config = to_plain(cfg.denoiser)
    assert get_class(config.pop("_target_")) is DiT
    assert config == {k: v for k, v in expected.items() if k not in of_vae}
    config, expected = to_plain(cfg.conditions), defaults_of(Conditions)
    assert get_class(config.pop("_target_")) is Conditions
    assert set(expected) - set(config) == {"d_model", "max_num_elements"}
    assert all(expected[name] == value for name, value in config.items())
    config, expected = to_plain(cfg.compositions), defaults_of(CompositionModel)
    assert get_class(config.pop("_target_")) is CompositionModel
    assert set(expected) - set(config) == {"conditions", "max_num_elements"}
    assert all(expected[name] == value for name, value in config.items())
    expected = defaults_of(LDMModule)
    plain = {k: v for k, v in to_plain(cfg).items() if not isinstance(v, dict)}
    assert plain.pop("_recursive_") is False
    assert get_class(plain.pop("_target_")) is LDMModule
    assert all(expected.pop(name) == value for name, value in plain.items())
    assert set(expected) == {
        *("vae", "denoiser", "conditions", "compositions", "optimizer", "scheduler")
    }


def test_the_vae_is_there():
    assert VAEModule.load_from_checkpoint(VAE).training_set
