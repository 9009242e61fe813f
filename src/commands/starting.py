"""What a run starts with: the weights of a checkpoint, and sizes that suit the machine and data."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from src.base.module import CrystalModule
from src.base.pretrained import read_pretrained, restore
from src.utils.checkpoints import load_checkpoint
from src.utils.config import to_plain
from src.utils.entry import CONFIGS

log = logging.getLogger(__name__)

# With a pretrained model, a tenth of the learning rate that it was trained with: see docs/few.md
FINE_TUNING_FACTOR = 0.1
FINE_TUNING_WARMUP = 20  # steps
SMALLEST_BATCH, STEPS_PER_EPOCH = 8, 16


def fields_given() -> list[str]:
    """The fields and groups that were set on the command line; none without Hydra."""
    if not HydraConfig.initialized():
        return []
    overrides = HydraConfig.get().overrides.task
    return [override.lstrip("+~").partition("=")[0] for override in overrides]


def is_given(name: str) -> bool:
    """Whether a field, a part of it or a choice for it was set on the command line."""
    given = [field.replace("/", ".") for field in fields_given()]
    return any(field == name or field.startswith(f"{name}.") for field in given)


def load_start(cls: type[CrystalModule], source: str) -> CrystalModule:
    """The module of a checkpoint, of a folder from `save_pretrained` or of the Hub.

    Raises:
        FileNotFoundError, CheckpointError: if it cannot be loaded; the message says why.
    """
    path = Path(source).expanduser()
    if path.is_file() or source.endswith(".ckpt"):
        return restore(cls, load_checkpoint(path), path)
    return restore(cls, read_pretrained(source), source)


def with_settings_of(
    start: CrystalModule, cfg: DictConfig, group: str, fixed: tuple[str, ...]
) -> DictConfig:
    """A config for going on with the weights of a module.

    The networks, the cell of the crystals and the learning rate are those that suit the module.
    What was set on the command line stays.

    Args:
        start: the module.
        cfg: the config of the run. It is not changed.
        group: the key of `cfg` that the module is built from.
        fixed: the arguments of the module that determine its weights.
    """
    cfg = cfg.copy()
    taken: dict[str, Any] = {f"{group}.{name}": start.hparams[name] for name in fixed}
    taken["data.cell"] = (start.read_options or {}).get("cell", cfg.data.cell)
    stored = start.hparams["optimizer"]
    if stored["_target_"] == cfg[group].optimizer._target_:
        taken[f"{group}.optimizer.lr"] = FINE_TUNING_FACTOR * stored["lr"]
    else:
        taken[f"{group}.optimizer.lr"] = FINE_TUNING_FACTOR * cfg[group].optimizer.lr
    taken[f"{group}.scheduler.warmup_steps"] = FINE_TUNING_WARMUP
    kept = {
        name: to_plain(OmegaConf.select(cfg, name)) for name in fields_given() if "/" not in name
    }
    with open_dict(cfg):
        for name, value in taken.items():
            if not is_given(name) or isinstance(value, Mapping):
                OmegaConf.update(cfg, name, to_plain(value), merge=False)
        for name, value in kept.items():  # a part of a network, such as its dropout
            if name.startswith(f"{group}."):
                OmegaConf.update(cfg, name, value)
    log.info(
        "Starting from %s, with its networks, data.cell=%s and %s.optimizer.lr=%.3g",
        cfg.init_from, cfg.data.cell, group, cfg[group].optimizer.lr,
    )  # fmt: skip
    return cfg


def is_automatic(*groups: str) -> bool:
    """Whether sizes may be chosen here: Hydra composed the config, and no experiment did.

    Args:
        groups: choices that must be open as well.
    """
    if not HydraConfig.initialized():
        return False
    choices = HydraConfig.get().runtime.choices
    names = ("experiment", "debug", "ldm_debug", "hparams_search", *groups)
    return not any(choices.get(name) not in (None, "null") for name in names)


def with_small_networks(cfg: DictConfig, group: str, size_group: str) -> DictConfig:
    """A config with `SIZE_GROUP=small` if there is no GPU and no size was asked for."""
    chosen = [
        "size",
        size_group,
        *(f"{group}.{part}" for part in ("encoder", "decoder", "denoiser")),
    ]
    has_gpu = torch.cuda.is_available() or torch.mps.is_available()
    if not is_automatic(size_group) or has_gpu or any(map(is_given, chosen)):
        return cfg
    cfg = cfg.copy()
    small = OmegaConf.load(CONFIGS / size_group / "small.yaml")
    for name, value in _leaves(small):
        if not is_given(name):
            OmegaConf.update(cfg, name, value)
    log.info(
        "There is no GPU, so the model is small: %s=null would train the full size", size_group
    )
    return cfg


def _leaves(node: Any, name: str = "") -> list[tuple[str, Any]]:
    if not OmegaConf.is_dict(node):
        return [(name, node)]
    return [
        leaf
        for key, value in node.items()
        for leaf in _leaves(value, f"{name}.{key}" if name else str(key))
    ]


def batch_size_for(num_crystals: int, largest: int) -> int:
    """A power of two that gives an epoch about `STEPS_PER_EPOCH` steps, if there are few crystals.

    Args:
        num_crystals: in the training set.
        largest: the batch size for many crystals.
    """
    size = SMALLEST_BATCH
    while size < largest and 2 * size * STEPS_PER_EPOCH <= num_crystals:
        size *= 2
    return min(size, largest)
