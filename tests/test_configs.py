"""Every config composes, its parts can be built, and its defaults agree with the code."""

import inspect
import re
from pathlib import Path

import hydra
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import get_class, instantiate
from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf

from src.callbacks import MatchRate, ReconstructionPictures
from src.data import DataModule
from src.metrics.matching import open_matcher
from src.utils.config import to_plain
from src.utils.schedules import Schedule
from src.vae_module import VAEModule
from src.vae_module.decoders.transformer import TransformerDecoder
from src.vae_module.encoders.transformer import TransformerEncoder

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SMALL = [
    f"vae_module.{part}.{name}={value}"
    for part in ("encoder", "decoder")
    for name, value in (("d_model", 16), ("nhead", 2), ("num_layers", 1), ("dim_feedforward", 16))
]


def choices(group: str) -> list[str]:
    """The names in a config group, as used to select them."""
    folder = CONFIGS / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


@pytest.fixture
def make_config(tmp_path, monkeypatch):
    monkeypatch.setenv("PROJECT_ROOT", str(tmp_path))

    def make(*overrides: str):
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return compose(
                "train_vae", overrides=[f"paths.output_dir={tmp_path / 'run'}", *overrides]
            )

    return make


def make_parts(cfg) -> tuple:
    """Build what `src.commands.train.train` builds from a config."""
    OmegaConf.resolve(cfg)
    callbacks = [instantiate(c) for c in cfg.callbacks.values() if "_target_" in c]
    loggers = [instantiate(c) for c in cfg.logger.values()]
    assert all(isinstance(c, Callback) for c in callbacks)
    assert all(isinstance(c, Logger) for c in loggers)
    vae, data = instantiate(cfg.vae_module), instantiate(cfg.data)
    trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=loggers or False)
    assert isinstance(vae, VAEModule)
    assert isinstance(data, LightningDataModule)
    assert isinstance(trainer, Trainer)
    return vae, data, trainer


# All of them compose, and their parts can be made


@pytest.mark.parametrize("name", [name for name in choices("experiment") if "/vae_" in name])
def test_experiments(make_config, name):
    cfg = make_config(f"experiment={name}", "trainer=cpu", *SMALL)
    vae, data, trainer = make_parts(cfg)
    assert cfg.task_name == name
    assert data.data_dir == Path(cfg.paths.data_dir) / name.split("/")[0]
    assert vae.decoder.atom_type_predict is ("_dng" in name)
    assert vae.atom_type_predict is ("_dng" in name)
    assert trainer.max_epochs == cfg.trainer.max_epochs
    assert trainer.max_epochs >= 20 or cfg.trainer.max_time


def test_sizes(make_config):
    sizes = {"small": (128, 1.07e6), "medium": (256, 6.5e6)}
    assert set(choices("size")) == set(sizes)
    for name, (width, num_parameters) in sizes.items():
        vae = instantiate(make_config(f"size={name}").vae_module)
        assert vae.encoder.d_model == vae.decoder.d_model == width
        assert sum(p.numel() for p in vae.parameters()) == pytest.approx(num_parameters, rel=0.05)
    own = make_config("experiment=mp_20/vae_dng_small", "vae_module.encoder.num_layers=2")
    assert own.vae_module.encoder == {**own.vae_module.encoder, "d_model": 128, "num_layers": 2}
    assert own.data.source == "mp_20"
    predecessor = make_config("experiment=mp_20/vae_dng_small", "vae_module=chemeleon2").vae_module
    assert (predecessor.encoder.d_model, predecessor.optimizer.lr) == (128, 1e-4)


@pytest.mark.parametrize("name", choices("debug"))
def test_debug(make_config, name):
    cfg = make_config("experiment=mp_20/vae_csp", f"debug={name}", "trainer=cpu", *SMALL)
    _, data, trainer = make_parts(cfg)
    assert cfg.task_name == "debug"  # it wins over the experiment
    assert data.data_dir.name == "mp_20"
    assert trainer.max_epochs <= 500


OWN = ("default", "cif_folder", "structures")


@pytest.mark.parametrize("name", [name for name in choices("data") if name != "of_run"])
def test_data(make_config, tmp_path, name):
    more = [f"data.data_dir={tmp_path}"] if name in OWN else []
    data = instantiate(make_config(f"data={name}", *more).data)
    assert data.data_dir == (tmp_path if more else tmp_path / "data" / name)
    assert data.cache_dir == tmp_path / ".cache" / "datasets"
    assert data.files == ("*" if name == "structures" else "*.cif")


@pytest.mark.parametrize("name", [name for name in choices("callbacks") if name != "ldm"])
@pytest.mark.parametrize("logger", choices("logger"))
def test_callbacks_and_loggers(make_config, monkeypatch, tmp_path, name, logger):
    monkeypatch.setenv("WANDB_MODE", "offline")
    cfg = make_config(f"callbacks={name}", f"logger={logger}", "trainer=cpu", *SMALL)
    _, _, trainer = make_parts(cfg)
    kinds = [type(x).__name__.replace("Logger", "") for x in trainer.loggers]
    expected = {
        "none": [],
        "csv": ["CSV"],
        "tensorboard": ["CSV", "TensorBoard"],
        "wandb": ["CSV", "Wandb"],
        "many": ["CSV", "TensorBoard", "Wandb"],
    }
    assert kinds == expected[logger]
    assert any(isinstance(c, MatchRate) for c in trainer.callbacks) is (name != "none")
    assert any(isinstance(c, WeightAveraging) for c in trainer.callbacks) is (name == "ema")
    assert all(Path(x.save_dir).is_relative_to(tmp_path / "run") for x in trainer.loggers)


ACCELERATORS = {
    "default": ("auto", 1, "auto"),
    "cpu": ("cpu", 1, "auto"),
    "gpu": ("gpu", 1, "auto"),
    "ddp": ("gpu", "auto", "ddp"),
    "ddp_sim": ("cpu", 2, "ddp"),
}


@pytest.mark.parametrize("name", choices("trainer"))
def test_trainers(make_config, tmp_path, name):
    cfg = make_config(f"trainer={name}").trainer
    assert (cfg.accelerator, cfg.devices, cfg.strategy) == ACCELERATORS[name]
    cfg.accelerator = "cpu"  # this machine may have no other
    cfg.devices = 1 if cfg.devices == "auto" else cfg.devices
    trainer = instantiate(cfg, logger=False)
    assert (trainer.max_epochs, trainer.max_steps) == (1000, -1)
    assert trainer.world_size == cfg.devices
    assert trainer.default_root_dir == str(tmp_path / "run")


@pytest.mark.parametrize("name", choices("scheduler"))
def test_schedulers(make_config, name):
    vae = instantiate(make_config(f"scheduler={name}", *SMALL).vae_module)
    target = vae.scheduler["_target_"]
    assert issubclass(get_class(target), Schedule)
    assert re.sub(r"(?<!^)(?=[A-Z])", "_", target.split(".")[-1]).lower() == name


@pytest.mark.parametrize("name", ["vae_module", "chemeleon2"])
@pytest.mark.parametrize("predict", [True, False])
def test_vae_modules(make_config, name, predict):
    cfg = make_config(f"vae_module={name}", f"vae_module.atom_type_predict={predict}", *SMALL)
    vae = instantiate(cfg.vae_module)
    assert vae.atom_type_predict is predict
    assert vae.encoder.index_embedding is (name == "chemeleon2")
    assert set(vae.loss_weights) == {"atom_types", "lengths", "angles", "frac_coords", "kl"}


def test_the_predecessors_optimizer_is_theirs(make_config):
    vae = instantiate(make_config("vae_module=chemeleon2", *SMALL).vae_module)
    kept = {"lr": 1e-4, "betas": [0.9, 0.999], "weight_decay": 0.0}
    assert vae.optimizer == {"_target_": "torch.optim.AdamW", "fused": True, **kept}


COMMANDS = {
    "compare_generated": {"inputs"},
    "encode_vae": {"ckpt_path"},
    "eval_csp": {"input", "reference"},
    "eval_generated": {"input", "reference"},
    "eval_stability": set(),  # input or merge
    "eval_vae": {"ckpt_path"},
    "inspect_data": set(),
    "reconstruct": {"ckpt_path", "input", "output"},
    "sample_ldm": {"ckpt_path"},
    "sample_vae": {"ckpt_path"},
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(name):
    """Only the fields that a command cannot do without are required; all others have values."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(name, overrides=["++paths.output_dir=."])
    assert OmegaConf.missing_keys(cfg) == COMMANDS[name]
    assert cfg.overwrite is False
    assert any((CONFIGS.parent / folder / f"{name}.py").is_file() for folder in ("src", "scripts"))


def test_all_commands_are_tested():
    trained = {"train_vae", "train_ldm", "search_vae", "wandb_sweep"}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == trained | set(COMMANDS)


def test_all_groups_are_tested():
    groups = {path.name for path in CONFIGS.iterdir() if path.is_dir()}
    tested = {"experiment", "debug", "data", "callbacks", "logger", "trainer", "scheduler", "size"}
    of_ldm = {"ldm_module", "ldm_size", "ldm_debug"}  # see test_configs_ldm.py
    assert groups == tested | of_ldm | {"vae_module", "paths", "hydra", "hparams_search"}
    parts = {f"{part}/transformer" for part in ("encoder", "decoder")}
    parts |= {"optimizer/adamw", "optimizer/muon"}
    assert set(choices("vae_module")) == parts | {"vae_module", "chemeleon2"}


@pytest.mark.parametrize("key", ["nothing", "vae_module.encoder.width", "trainer.max_epoch"])
def test_an_unknown_key_is_hydras_error(make_config, key):
    with pytest.raises(ConfigCompositionException, match=f"Could not override '{key}'"):
        make_config(f"{key}=1")


def test_a_part_that_is_not_there_is_hydras_error(make_config):
    with pytest.raises(hydra.errors.MissingConfigException, match="experiment/mp_21"):
        make_config("experiment=mp_21/vae_dng")


# Config and code say the same


def defaults_of(cls) -> dict:
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return {p.name: to_plain(None if p.default is p.empty else p.default) for p in parameters}


@pytest.mark.parametrize(
    ("cls", "key", "set_by_the_run"),
    [
        (TransformerEncoder, "vae_module.encoder", {}),
        (TransformerDecoder, "vae_module.decoder", {}),
        (DataModule, "data", {"data_dir", "cache_dir", "max_num_atoms"}),
        (MatchRate, "callbacks.match_rate", {}),
        (ReconstructionPictures, "callbacks.pictures", {}),
    ],
)
def test_defaults_are_those_of_the_constructor(make_config, cls, key, set_by_the_run):
    config = to_plain(OmegaConf.select(make_config(), key))
    assert get_class(config.pop("_target_")) is cls
    expected = defaults_of(cls)
    assert config.keys() == expected.keys()
    for name in set_by_the_run:
        del config[name], expected[name]
    assert config == expected


def test_vae_module_defaults_are_those_of_the_constructor(make_config):
    config = make_config(*SMALL).vae_module
    names = set(defaults_of(VAEModule))
    assert set(config) - {"_target_", "_recursive_"} == names
    composed = instantiate(config)
    plain = VAEModule(to_plain(config.encoder), to_plain(config.decoder))
    for name in names - {"encoder", "decoder", "optimizer", "scheduler"}:
        assert getattr(composed, name) == getattr(plain, name), name
    for name in ("optimizer", "scheduler"):  # what the one leaves out is what its class defaults to
        ours, theirs = getattr(composed, name), getattr(plain, name)
        filled = [
            {**defaults_of(get_class(c["_target_"])), **c, "params": None} for c in (ours, theirs)
        ]
        assert filled[0] == filled[1]


def test_the_evaluation_has_the_matcher_of_the_callback(make_config):
    cfg = make_config()
    for key in ("matcher", "num_workers", "timeout"):
        assert cfg.eval[key] == cfg.callbacks.match_rate[key]


@pytest.mark.parametrize(
    "name", ["eval_vae", "eval_csp", "eval_generated", "reconstruct", "inspect_data"]
)
def test_every_command_that_matches_has_a_choice_of_matcher(name):
    config = OmegaConf.load(CONFIGS / f"{name}.yaml")
    assert config.matcher == "fast"
    open_matcher(config.matcher, config.num_workers)


# Fields are explained where they are first written


# these state differences to fields that are explained elsewhere; Hydra explains its own
DIFFERENCES = (
    "experiment", "debug", "hydra", "size", "vae_module/chemeleon2.yaml", "ldm_size", "ldm_debug",
)  # fmt: skip
FIELD = re.compile(r"^(?P<indent> *)(?P<key>\w+): *(?P<value>[^#]*?) *(?P<comment>#.*)?$")


def unexplained(path: Path) -> list[str]:
    """Fields with a value but without a comment on their line or above it.

    Excludes fields that are inherited from a default, targets, and references to another field.
    """
    defaults = (yaml.safe_load(path.read_text()) or {}).get("defaults", [])
    inherited = set()
    for entry in defaults:
        base = path.parent / f"{entry}.yaml"
        if isinstance(entry, str) and entry != "_self_" and base.is_file():
            inherited |= set(yaml.safe_load(base.read_text()) or {})
    found, above = [], ""
    for line in path.read_text().splitlines():
        field = FIELD.match(line)
        if field and field["value"] and field["key"] not in {"_target_"} | inherited:
            pointer = re.fullmatch(r"\$\{[^}]+\}(/\w+)?", field["value"])
            if not (pointer or field["comment"] or above.lstrip().startswith("#")):
                found.append(field["key"])
        above = line
    return found


@pytest.mark.parametrize(
    "path",
    [
        p
        for p in sorted(CONFIGS.rglob("*.yaml"))
        if not str(p.relative_to(CONFIGS)).startswith(DIFFERENCES)
    ],
    ids=lambda path: str(path.relative_to(CONFIGS)),
)
def test_fields_are_explained(path):
    assert unexplained(path) == []
