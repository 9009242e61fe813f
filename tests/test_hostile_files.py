"""Give every reader files that would run code if they were opened carelessly."""

import importlib.util
import json
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from src.commands.encode import encode
from src.commands.evaluate import evaluate
from src.commands.reconstruct import reconstruct
from src.commands.sample import sample
from src.commands.train import train
from src.commands.trained_model import load_data
from src.data import DataError
from src.data.structures import read_structures, written_name
from src.utils.checkpoints import CheckpointError, find_last, load_checkpoint, save_checkpoint
from src.vae_module import VAEModule
from src.vae_module.decoders.transformer import TransformerDecoder
from src.vae_module.encoders.transformer import TransformerEncoder
from src.vae_module.import_chemeleon2 import import_chemeleon2

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"d_model": 16, "nhead": 2, "num_layers": 1, "dim_feedforward": 16}


class Bomb:
    """Makes a call that leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.trace}",)


@pytest.fixture
def trace(tmp_path) -> Iterator[Path]:
    """The file that must not exist at the end of a test."""
    path = tmp_path / "trace"
    yield path
    assert not path.exists()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "val", "test"):
        table = pd.read_csv(ROOT / "data" / "prototypes" / f"{split}.csv", nrows=4)
        table.to_csv(folder / f"{split}.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> dict[str, Any]:
    """The content of a valid checkpoint."""
    path = tmp_path_factory.mktemp("good") / "vae.ckpt"
    save_checkpoint(VAEModule(TransformerEncoder(**SIZES), TransformerDecoder(**SIZES)), path)
    return torch.load(path, weights_only=True)


# Checkpoints


def make_config(name: str, folder: Path, data_dir: Path, *overrides: str) -> DictConfig:
    given = [*overrides]
    if name in ("train_vae", "eval_vae", "encode_vae"):
        given += ["data=default", f"data.data_dir={data_dir}", f"paths.cache_dir={data_dir}/cache"]
    if name == "train_vae":
        small = [
            f"vae_module.{p}.{k}={v}" for p in ("encoder", "decoder") for k, v in SIZES.items()
        ]
        given += [
            "callbacks=none",
            "logger=none",
            "trainer=cpu",
            f"paths.output_dir={folder}",
            *small,
        ]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose(name, overrides=given)


def command(run, name: str, *overrides: str):
    """A function of a path and a data folder that runs a command in a separate folder."""

    def call(path: Path, data_dir: Path) -> None:
        folder = path.parent / "out"
        filled = [o.format(path=path, out=folder) for o in overrides]
        run(make_config(name, folder, data_dir, *filled))

    return call


def script(path: Path, data_dir: Path) -> None:
    spec = importlib.util.spec_from_file_location("script", ROOT / "scripts/import_checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if module.main([str(path), str(path.with_name("imported.ckpt"))]):
        raise CheckpointError(path)


def resume_last(path: Path, data_dir: Path) -> None:
    folder = path.parent / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_bytes(path.read_bytes())
    train(make_config("train_vae", folder, data_dir, "resume_from=last"))


def pretrained(path: Path, data_dir: Path) -> None:
    """A folder whose weights are a pickle, under the expected file name and others."""
    VAEModule(TransformerEncoder(**SIZES), TransformerDecoder(**SIZES)).save_pretrained(
        path.parent / "vae"
    )
    for name in ("model.safetensors", "pytorch_model.bin", "model.ckpt"):
        (path.parent / "vae" / name).write_bytes(path.read_bytes())
    VAEModule.from_pretrained(path.parent / "vae")


OPENED_BY = {
    "load_from_checkpoint": lambda path, _: VAEModule.load_from_checkpoint(path),
    "weights_only=False": lambda path, _: VAEModule.load_from_checkpoint(path, weights_only=False),
    "load_checkpoint": lambda path, _: load_checkpoint(path),
    "find_last": lambda path, _: find_last(path.parent),
    "from_pretrained": pretrained,
    "import_chemeleon2": lambda path, _: import_chemeleon2(path),
    "import_checkpoint.py": script,
    "train_vae ckpt_path": command(train, "train_vae", "ckpt_path={path}"),
    "train_vae resume_from": command(train, "train_vae", "resume_from={path}"),
    "train_vae resume_from=last": resume_last,
    "eval_vae": command(evaluate, "eval_vae", "ckpt_path={path}", "output_dir={out}"),
    "encode_vae": command(encode, "encode_vae", "ckpt_path={path}", "output={out}"),
    "sample_vae": command(sample, "sample_vae", "ckpt_path={path}", "output={out}"),
    "reconstruct": command(
        reconstruct, "reconstruct", "ckpt_path={path}", "output={out}", "input={path}"
    ),
}


def in_a_weight(content: dict, bomb: Bomb) -> dict:
    return {**content, "state_dict": {**content["state_dict"], "quant_conv.bias": bomb}}


def in_the_config(content: dict, bomb: Bomb) -> dict:
    return {**content, "hyper_parameters": {**content["hyper_parameters"], "encoder": bomb}}


@pytest.mark.parametrize("opened", OPENED_BY.values(), ids=OPENED_BY)
@pytest.mark.parametrize(("place", "zipped"), [(in_a_weight, True), (in_the_config, False)])
def test_a_pickle_is_not_run(place, zipped, opened, content, data_dir, tmp_path, trace):
    path = tmp_path / "hostile.ckpt"
    torch.save(place(content, Bomb(trace)), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError) as error:
        opened(path, data_dir)
    assert str(tmp_path) in str(error.value)


def test_the_pickle_would_have_run(content, tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "hostile.ckpt"
    torch.save(in_a_weight(content, Bomb(trace)), path)
    torch.load(path, weights_only=False)
    assert trace.exists()


# Configs


def touch(trace: Path) -> dict[str, Any]:
    """A Hydra config of a call that leaves a trace."""
    return {"_target_": "subprocess.Popen", "args": ["touch", str(trace)]}


def place(config: dict, where: str, value: Any) -> dict:
    """A copy of a nested dict with another value at a dotted path."""
    name, _, rest = where.partition(".")
    return {**config, name: place(config[name], rest, value) if rest else value}


@pytest.mark.parametrize("kind", ["checkpoint", "folder"])
@pytest.mark.parametrize(
    "where", ["encoder", "decoder", "encoder.d_model", "decoder.activation", "latent_dim"]
)
def test_a_config_of_networks_makes_nothing_else(where, kind, content, tmp_path, trace):
    hostile = place(content, f"hyper_parameters.{where}", touch(trace))
    with pytest.raises(CheckpointError):
        restore(hostile, kind, tmp_path)


@pytest.mark.parametrize("kind", ["checkpoint", "folder"])
@pytest.mark.parametrize(
    "where", ["optimizer", "optimizer.lr", "scheduler", "scheduler.warmup", "loss_weights.kl"]
)
def test_a_config_of_training_makes_nothing_else(where, kind, content, tmp_path, trace):
    vae = restore(place(content, f"hyper_parameters.{where}", touch(trace)), kind, tmp_path)
    if where != "loss_weights.kl":
        with pytest.raises((ValueError, TypeError)):
            vae.configure_optimizers()


def restore(content: dict, kind: str, folder: Path) -> VAEModule:
    if kind == "checkpoint":
        torch.save(content, folder / "vae.ckpt")
        return VAEModule.load_from_checkpoint(folder / "vae.ckpt")
    VAEModule(TransformerEncoder(**SIZES), TransformerDecoder(**SIZES)).save_pretrained(
        folder / "vae"
    )
    config = {"library": "xtal-latent", "hyper_parameters": content["hyper_parameters"]}
    (folder / "vae" / "config.json").write_text(json.dumps(config))
    return VAEModule.from_pretrained(folder / "vae")


@pytest.mark.parametrize(
    "target",
    ["os.system", "src.utils.checkpoints.os.system", "src.commands.train.train",
     "src.training.train", "torch.optim.sys.exit", "torch.hub.load", "srcx.evil.Encoder", "src",
     "", ".", "src.", "src..os", 7, None, ["os"]],
)  # fmt: skip
def test_targets_that_are_no_networks_of_ours(target, content, tmp_path):
    hostile = place(content, "hyper_parameters.encoder._target_", target)
    with pytest.raises(CheckpointError):
        restore(hostile, "checkpoint", tmp_path)


CONFIGS = {
    "target": "data: {{_target_: subprocess.Popen, args: [touch, {trace}]}}",
    "a function of ours": "data: {{_target_: src.data.cif.read_cif, text: a, data_dir: b}}",
    "object": "data: !!python/object/apply:os.system ['touch {trace}']",
    "name": "data: !!python/name:os.system",
    "module": "data: {{x: !!python/module:antigravity ''}}",
    "aliases": "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a]\ndata: [*b,*b,*b]",
    "resolver": "data: {{_target_: src.data.DataModule, data_dir: '${{hydra:runtime.x}}'}}",
    "not yaml": "data: [",
    "text": "data",
    "nothing": "",
}


@pytest.mark.parametrize("text", CONFIGS.values(), ids=CONFIGS)
def test_the_config_of_a_run_makes_nothing_but_data(text, content, tmp_path, monkeypatch, trace):
    monkeypatch.setenv("PROJECT_ROOT", str(tmp_path))
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    (tmp_path / "run" / "config.yaml").write_text(text.format(trace=trace))
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("eval_vae", overrides=[f"ckpt_path={path}"])
    with pytest.raises(ValueError):  # noqa: PT011
        load_data(cfg)


# Crystals

CIF = (ROOT / "data" / "prototypes" / "val.csv").read_text().split('"')[1]


def test_an_archive_stays_where_it_is(tmp_path):
    """Members with paths outside the archive are read under safe names or skipped."""
    folder = tmp_path / "in"
    folder.mkdir()
    names = ["good.cif", "../up.cif", "a/../../up.cif", "/absolute.cif", "..", "a\\..\\up.cif"]
    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        for name in names:
            archive.writestr(name, CIF)
        link = zipfile.ZipInfo("link.cif")
        link.external_attr = 0o120777 << 16  # a symbolic link
        archive.writestr(link, "/etc/passwd")
    found, skipped = read_structures(folder / "x.zip")
    assert {"good", "absolute"} <= {item.id for item in found}
    for item in found:
        target = (tmp_path / "out" / written_name(item.source)).resolve()
        assert target.is_relative_to(tmp_path / "out")
    assert any("link" in str(where) for where, _ in skipped)
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "x.zip"]


@pytest.mark.filterwarnings("ignore")  # of ASE, about files that it does not know
@pytest.mark.parametrize(
    "name", ["x.json", "x.traj", "x.trj", "x.pckl", "x.cif", "x.bundle", "x.xyz", "x", "POSCAR"]
)
def test_a_crystal_is_not_unpickled(name, tmp_path, trace):
    bomb = pickle.dumps(Bomb(trace))
    for i, prefix in enumerate((b"", b"PickleTrajectory", b"1\n")):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / name).write_bytes(prefix + bomb)
        with pytest.raises(DataError):
            read_structures(folder)


def test_a_structure_in_json_makes_nothing_else(tmp_path, trace):
    call = {"@module": "subprocess", "@class": "Popen", "args": ["touch", str(trace)]}
    site = {"species": [{"element": "Na", "occu": 1}], "abc": [0, 0, 0], "properties": {"x": call}}
    lattice = {"matrix": [[4, 0, 0], [0, 4, 0], [0, 0, 4]], **call}
    path = tmp_path / "structure.json"
    path.write_text(json.dumps({"lattice": lattice, "sites": [site], **call}))
    found, _ = read_structures(path)
    assert found[0].structure.formula == "Na1"
