"""Build objects from configs, and describe objects as configs."""

import io

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from src.utils.config import build, describe, differences, to_plain
from src.vae_module.decoders.transformer import TransformerDecoder
from src.vae_module.encoders.transformer import TransformerEncoder

SMALL = {"d_model": 16, "nhead": 2, "num_layers": 1, "dim_feedforward": 24, "dropout": 0.125}
ENCODER = {"max_num_elements": 20, "coords_input": "raw", "lattice_input": "matrix"}
DECODER = {"max_num_elements": 20, "atom_type_predict": False, "coords_output": "raw"}
LINEAR = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}


class Keeper(nn.Module):
    """Stores its only argument, whatever it is."""

    def __init__(self, value: object = None) -> None:
        super().__init__()
        self.value = value


class Forgetful(nn.Module):
    def __init__(self, kept: int = 1, lost: int = 2) -> None:
        super().__init__()
        self.kept = kept


@pytest.mark.parametrize(
    ("cls", "arguments"), [(TransformerEncoder, ENCODER), (TransformerDecoder, DECODER)]
)
def test_describe_and_build_are_inverse(cls, arguments):
    module = cls(**SMALL, **arguments)
    config = describe(module)
    assert config["_target_"] == f"{cls.__module__}.{cls.__name__}"
    assert {**config, **SMALL, **arguments} == config

    copy = build(config, nn.Module, allow=["src"])
    assert type(copy) is cls
    assert describe(copy) == config
    shapes = {name: weight.shape for name, weight in module.state_dict().items()}
    assert {name: weight.shape for name, weight in copy.state_dict().items()} == shapes


def test_a_description_survives_a_checkpoint():
    config = describe(Keeper({"betas": (0.9, 0.99), "names": ["a", None], 1: True}))
    file = io.BytesIO()
    torch.save(config, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == config
    assert config["value"] == {"betas": [0.9, 0.99], "names": ["a", None], "1": True}


def test_describe_refuses_what_a_checkpoint_cannot_store():
    with pytest.raises(TypeError, match=r"Forgetful must store .*\['lost'\] as attr"):
        describe(Forgetful())
    for value in (object(), torch.float32, [{"deep": torch.zeros(1)}]):
        with pytest.raises(TypeError, match=r"Keeper has values .* cannot store .*\['value'\]"):
            describe(Keeper(value))


def test_build_takes_positional_arguments_and_omegaconf():
    weight = nn.Parameter(torch.zeros(1))
    config = OmegaConf.create(
        {
            "base": 0.125,
            "optimizer": {
                "_target_": "torch.optim.AdamW",
                "lr": "${base}",
                "betas": [0.5, 0.75],
            },
        }
    )
    optimizer = build(config.optimizer, torch.optim.Optimizer, [weight], allow=["torch.optim"])
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (group["lr"], list(group["betas"])) == (0.125, [0.5, 0.75])
    assert config.optimizer._target_ == "torch.optim.AdamW"  # the config is unchanged


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("os.system", "not among the allowed modules"),
        ("torch.nn.Linear", "not among the allowed modules"),
        ("srcery.Class", "not among the allowed modules"),  # a prefix is not a package
        ("src.data.dataset.FileLock", "not a Module"),
        ("src.nn.transformer.nn", "not a Module"),  # a Python module
        ("src.nn.transformer.segment_mean", "not a Module"),  # a function
        ("src.nn.transformer.Missing", "cannot be imported"),
        ("src.nn.missing.Class", "cannot be imported"),
        ("Linear", "needs a _target_"),
        (None, "needs a _target_"),
        (7, "needs a _target_"),
    ],
)
def test_build_refuses_a_target(target, reason):
    with pytest.raises(ValueError, match=reason):
        build({"_target_": target}, nn.Module, allow=["src", "torch.optim"])


def test_build_refuses_a_foreign_class_that_an_allowed_module_imports():
    with pytest.raises(ValueError, match=r"filelock.* is not allowed"):
        build(
            {"_target_": "src.data.dataset.FileLock", "lock_file": "unused"}, object, allow=["src"]
        )


@pytest.mark.parametrize("target", [".torch.Linear", "torch..Linear", "torch.nn."])
def test_build_refuses_a_malformed_target(target):
    with pytest.raises(ValueError, match="cannot be imported"):
        build({"_target_": target}, nn.Module)


def test_build_without_allow_takes_any_class_of_the_base():
    assert build(LINEAR, nn.Module).weight.shape == (3, 2)
    with pytest.raises(ValueError, match=r"'torch.nn.Linear' is not a Optimizer"):
        build(LINEAR, torch.optim.Optimizer)


def test_build_names_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match=r"torch\.nn\.Linear: .*'widht'"):
        build({**LINEAR, "widht": 2}, nn.Module)
    with pytest.raises(ValueError, match=r"torch\.nn\.Linear: .*'in_features'"):
        build({"_target_": "torch.nn.Linear"}, nn.Module)


def test_build_does_not_modify_the_config():
    config = dict(LINEAR)
    build(config, nn.Module)
    assert config == LINEAR


def test_to_plain_resolves_interpolations_at_any_depth():
    inner = OmegaConf.create({"a": 2, "b": "${a}"})
    assert to_plain({"x": (inner, 1)}) == {"x": [{"a": 2, "b": 2}, 1]}


def test_differences_of_configs_are_those_of_fields_that_both_have():
    one = {"encoder": {"width": 1, "depth": 2, "only": 3}, "lr": 0.1, "part": {"a": 1}, "same": 1}
    other = {"encoder": {"width": 1, "depth": 4}, "lr": 0.2, "part": None, "same": 1, "new": 2}
    assert differences(one, other) == {
        "encoder.depth": (2, 4),
        "lr": (0.1, 0.2),
        "part": ({"a": 1}, None),
    }
    assert differences(one, one) == {}
