"""Continue a run: find its checkpoint, and compare the settings with those that it was begun with.

Most settings may change when a run continues: they act from then on, and the log names them. A few
may not, because the state of the run would not fit them, or because its results would mix two runs:
the data and their order, the seed, and whatever determines the weights.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from src.base import CrystalModule
from src.commands.trained_model import run_folder
from src.data import DataModule
from src.data.fingerprint import fingerprint, is_same
from src.utils.checkpoints import CheckpointError, check_weights, find_last, load_resumable
from src.utils.config import differences, flatten, to_plain

log = logging.getLogger(__name__)

CONFIG = "config.yaml"  # in a run folder: the settings that the run has

# How crystals are chosen and read. A folder may move: its content is compared instead.
FIXED_DATA = (
    "properties", "cell", "max_num_atoms", "max_atomic_number", "min_distance", "split_by",
    "split_ratio", "split_seed", "split_column", "shuffle", "seed",
)  # fmt: skip
# Settings whose change changes no result, or is reported in another way.
NOT_LOGGED = ("paths", "resume_from", "ckpt_path", "init_from", "data.cache_dir")
NOT_SET = "not set"

Change = tuple[Any, Any]


@dataclass
class Resumed:
    """The checkpoint that a run continues from.

    Attributes:
        path: of the checkpoint; None for a new run.
        step: the number of optimizer steps that it had taken.
    """

    path: str | None = None
    step: int = 0


def run_record(cfg: DictConfig, datamodule: DataModule, trainer: Trainer) -> dict[str, Any]:
    """What stays the same during a run, as plain types, to be saved in its checkpoints.

    Returns:
        `seed`, `crystals_per_step` (without accumulation, in all processes together) and `data`,
        the fingerprints of the splits that are used.
    """
    return {
        "seed": int(cfg.seed),
        "crystals_per_step": datamodule.batch_size * trainer.world_size,
        "data": {split: fingerprint(datamodule.dataset(split)) for split in ("train", "val")},
    }


def find_resume(
    cfg: DictConfig,
    output_dir: Path,
    group: str,
    fixed: Sequence[str],
    module: CrystalModule,
    trainer: Trainer,
) -> Resumed:
    """The checkpoint that `cfg.resume_from` means, a path or `last`.

    `last` means the last checkpoint in this run folder. If there is none, a new run starts, so a
    job that may be requeued can always use `last`.

    Args:
        cfg: the config of this run.
        output_dir: its folder.
        group: the key of `cfg` that the module is built from.
        fixed: the arguments of the module that determine its weights.
        module: the module to train, with the `run_record` of this run.
        trainer: of this run.

    Raises:
        CheckpointError: if the checkpoint cannot be read, or belongs to a run with other settings
            that cannot change; the message names them.
    """
    if cfg.resume_from is None:
        return Resumed()
    if cfg.resume_from == "last":
        found = find_last(output_dir / "checkpoints")
    else:
        found = Path(cfg.resume_from), load_resumable(cfg.resume_from)
    if found is None:
        log.warning(
            "resume_from=last: there is no run to continue in %s (hydra.run.dir), so a new one "
            "starts",
            output_dir,
        )
        return Resumed()
    path, checkpoint = found
    check_weights(module, checkpoint, path, warn=False)
    _check_optimizer(module, checkpoint, path)
    before, now = _config_of(path), to_plain(cfg)
    changes = _changes(before, now) if before else _changes_of_module(group, module, checkpoint)
    refused = [
        *_changed_networks(group, fixed, module, checkpoint),
        *_changed_run(module.run_record or {}, checkpoint.get("run_record"), changes),
        *_changed_callbacks(checkpoint, trainer),
    ]
    if refused:
        raise CheckpointError(
            f"the run of {path} cannot continue with other values of these settings (before / "
            f"now): {', '.join(refused)}. Restore them, or start a new run from its weights with "
            "ckpt_path"
        )
    log.info("Continuing from %s, after step %d", path, checkpoint["global_step"])
    if changes:
        named = ", ".join(_say(name, change) for name, change in changes.items())
        log.warning("Settings that change from here on (before / now): %s", named)
    return Resumed(str(path), checkpoint["global_step"])


def _say(name: str, change: Change) -> str:
    return f"{name} {change[0]} / {change[1]}"


def _config_of(checkpoint: Path) -> dict[str, Any] | None:
    """The settings with which the run of a checkpoint last went on, if its folder has them."""
    try:
        content = to_plain(OmegaConf.load(run_folder(checkpoint) / CONFIG))
    except (OSError, YAMLError, OmegaConfBaseException):
        return None
    return content if isinstance(content, dict) else None


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Change]:
    """The settings that differ, by their dotted names."""
    old, new = flatten(before), flatten(now)
    changed = {
        name: (old.get(name, NOT_SET), new.get(name, NOT_SET))
        for name in dict.fromkeys([*old, *new])
        # nothing, false and missing say the same of an optional part
        if old.get(name) != new.get(name)
    }
    return {name: values for name, values in changed.items() if not _within(name, NOT_LOGGED)}


def _within(name: str, keys: Sequence[str]) -> bool:
    return any(name == key or name.startswith(f"{key}.") for key in keys)


def _changes_of_module(
    group: str, module: CrystalModule, checkpoint: Mapping[str, Any]
) -> dict[str, Change]:
    found = differences(checkpoint.get("hyper_parameters") or {}, module.hparams)
    return {f"{group}.{name}": values for name, values in found.items()}


def _check_optimizer(module: CrystalModule, checkpoint: Mapping[str, Any], path: Path) -> None:
    ours = module.optimizer
    theirs = (checkpoint.get("hyper_parameters") or {}).get("optimizer", {})
    for name in ("_target_", "matrices"):
        before, now = theirs.get(name, ours.get(name)), ours.get(name)
        if before != now:
            setting = "" if name == "_target_" else f"{name}="
            raise CheckpointError(
                f"the run of {path} was begun with {setting}{before}, whose state {setting}{now} "
                "cannot use: continue it with that optimizer, or start a new run from its weights "
                "with ckpt_path"
            )


def _changed_networks(
    group: str, fixed: Sequence[str], module: CrystalModule, checkpoint: Mapping[str, Any]
) -> Iterator[str]:
    """The settings that determine what is computed with the weights."""
    stored = checkpoint.get("hyper_parameters") or {}
    for name, change in differences(stored, module.hparams).items():
        if name.partition(".")[0] in fixed and not name.endswith("dropout"):
            yield _say(f"{group}.{name}", change)
    weights = checkpoint["state_dict"]
    for given in module.given:
        parameters = getattr(module, given).named_parameters(prefix=given)
        if not all(torch.allclose(p.cpu(), weights[name].cpu()) for name, p in parameters):
            yield f"{given}_ckpt_path (its weights are others)"


def _changed_run(
    now: Mapping[str, Any], before: Mapping[str, Any] | None, changes: Mapping[str, Change]
) -> Iterator[str]:
    """The seed, the data and their order. Old checkpoints do not record them."""
    fixed = [f"data.{name}" for name in FIXED_DATA]
    if before is None:
        fixed += ["seed", "data.batch_size", "data.data_dir"]
        before = now
    named = [name for name in fixed if name in changes]
    if "seed" in changes and "data.seed" in named:  # which follows it
        named.remove("data.seed")
    yield from (_say(name, changes[name]) for name in named)
    if before["seed"] != now["seed"]:
        yield _say("seed", (before["seed"], now["seed"]))
    sizes = before["crystals_per_step"], now["crystals_per_step"]
    if sizes[0] != sizes[1]:
        yield _say("data.batch_size times the number of processes", sizes)
    for split, data in now["data"].items():
        old = before["data"][split]
        if not named and not is_same(old, data):
            counts = f"{old['num_crystals']:,} / {data['num_crystals']:,} crystals"
            yield f"data.data_dir (split {split} is another one: {counts})"


def _changed_callbacks(checkpoint: Mapping[str, Any], trainer: Trainer) -> Iterator[str]:
    averages = any(isinstance(c, WeightAveraging) for c in trainer.callbacks)  # type: ignore[attr-defined]
    if "current_model_state" in checkpoint and not averages:
        yield _say("callbacks.ema", ("set", NOT_SET))
