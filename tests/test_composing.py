"""Configs that tests compose are the ones that Hydra composes without `tests.composing`."""

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal import config_loader_impl, defaults_list
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from tests.composing import CONFIGS

VALUES = ["seed=3", "data.data_dir=x", "~vae_module.loss_weights", "vae_module={latent_dim: 3}"]


def composed(name: str, *overrides: str, folder: str = str(CONFIGS)) -> str:
    with initialize_config_dir(folder, version_base="1.3"):
        return OmegaConf.to_yaml(compose(name, list(overrides), return_hydra_config=True))


def attempts() -> list[str]:
    """One selection with several values, others that must not be taken for it, and errors."""
    selected = ["experiment=prototypes/vae_csp", "trainer=cpu"]
    made = [composed("train_vae", *selected), composed("train_vae", *selected, *VALUES)]
    made.append(composed("train_vae", *selected, "hydra/launcher=basic", "task_name=a"))
    made.append(composed("search_vae", *selected, "trainer.max_epochs=7"))
    made += [composed("train_vae", *selected), composed("train_vae", "trainer=cpu")]
    for wrong in ("vae_module.nothing=1", "~data=nothing", "trainer=nothing", "tutor=cpu"):
        with pytest.raises(ConfigCompositionException) as caught:
            composed("train_vae", *selected, wrong)
        made.append(f"{type(caught.value)} {caught.value}")
    return made


def test_the_same_configs_and_errors(monkeypatch):
    assert config_loader_impl.create_defaults_list is not defaults_list.create_defaults_list
    shared = attempts()
    assert shared == attempts()
    with monkeypatch.context() as patch:
        patch.setattr(
            config_loader_impl, "create_defaults_list", defaults_list.create_defaults_list
        )
        assert shared == attempts()


def test_files_of_a_test_are_read_anew(tmp_path):
    for value in (1, 2):
        (tmp_path / "own.yaml").write_text(f"a: {value}\n")
        assert f"\na: {value}\n" in composed("own", folder=str(tmp_path))
        (tmp_path / "trainer").mkdir(exist_ok=True)
        (tmp_path / "trainer" / "own.yaml").write_text(f"defaults: [cpu]\na: {value}\n")
        more = ["trainer=own", f"hydra.searchpath=[file://{tmp_path}]"]
        assert f"\n  a: {value}\n" in composed("train_vae", *more)
