"""Pretrained folders and Hub repositories; a local server replaces the Hub."""

import json
import struct
import threading
from collections import Counter
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.file_download
import pytest
import torch
from huggingface_hub import HfApi
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    Timer,
)
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from src.callbacks import LastCheckpoint
from src.data import CrystalBatch
from src.utils.checkpoints import CheckpointError, save_checkpoint
from src.utils.errors import UserError
from src.utils.output import OutputError
from src.utils.trainer import build_trainer
from src.vae_module import VAEModule
from src.vae_module.decoders.transformer import TransformerDecoder
from src.vae_module.encoders.transformer import TransformerEncoder

SIZES = {"d_model": 16, "nhead": 2, "num_layers": 1, "dim_feedforward": 16}
TRAINING_SET = {"num_crystals": 7, "num_atoms": {"2": 4, "20": 3}, "elements": {"8": 60, "26": 8}}
READ_OPTIONS = {
    "cell": "conventional", "max_num_atoms": 20, "max_atomic_number": 94, "min_distance": 0.7,
}  # fmt: skip


def make_vae(predict: bool = True) -> VAEModule:
    torch.manual_seed(0)
    decoder = TransformerDecoder(**SIZES, atom_type_predict=predict)
    vae = VAEModule(TransformerEncoder(**SIZES, num_harmonics=3), decoder, loss_weights={"kl": 0.1})
    vae.training_set = TRAINING_SET
    vae.read_options = READ_OPTIONS
    return vae.eval()


def make_batch() -> CrystalBatch:
    generator = torch.Generator().manual_seed(1)
    return CrystalBatch.from_tensors(
        torch.tensor([8, 26, 3, 14]),
        torch.rand(4, 3, generator=generator),
        5 * torch.eye(3).expand(2, 3, 3),
        torch.tensor([1, 3]),
    )


@torch.no_grad()
def outputs(vae: VAEModule) -> dict[str, torch.Tensor]:
    return vae.decode(vae.encode(make_batch()))


def assert_same(found: VAEModule, expected: VAEModule) -> None:
    assert not found.training
    assert dict(found.hparams) == dict(expected.hparams)
    assert found.training_set == expected.training_set
    assert found.read_options == expected.read_options == READ_OPTIONS
    for name, value in outputs(expected).items():
        assert torch.equal(outputs(found)[name], value), name


@pytest.fixture
def folder(tmp_path) -> Path:
    make_vae().save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


# Folders


@pytest.mark.parametrize("predict", [True, False], ids=["dng", "csp"])
def test_a_folder_gives_the_same_module(predict, tmp_path):
    vae = make_vae(predict)
    vae.save_pretrained(tmp_path / "vae")
    assert_same(VAEModule.from_pretrained(tmp_path / "vae"), vae)
    assert_same(VAEModule.from_pretrained(str(tmp_path / "vae")), vae)
    assert len(load_file(tmp_path / "vae" / "model.safetensors")) == len(vae.state_dict())


def test_folders_and_checkpoints_are_told_apart(folder, tmp_path):
    with pytest.raises(CheckpointError, match="from_pretrained"):
        VAEModule.load_from_checkpoint(folder)
    save_checkpoint(make_vae(), tmp_path / "vae.ckpt")
    with pytest.raises(CheckpointError, match="load_from_checkpoint"):
        VAEModule.from_pretrained(tmp_path / "vae.ckpt")


def test_what_the_folder_says(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    config = json.loads((folder / "config.json").read_text())
    assert config["library"] == "xtal-latent"
    assert config["hyper_parameters"]["encoder"]["num_harmonics"] == 3
    assert config["hyper_parameters"]["loss_weights"]["kl"] == 0.1
    assert config["training_set"] == TRAINING_SET
    assert config["read_options"] == READ_OPTIONS
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: xtal-latent\n")
    assert "7 crystals of up to 20 atoms and 2 elements" in card
    assert "| cells | conventional |" in card


@pytest.mark.parametrize(
    "options",
    [
        {"cell": "cubic"}, {"cell": ["niggli"]}, {"max_num_atoms": "20"}, {"min_distance": [1]},
        {"data_dir": "elsewhere"}, {"_target_": "os.system"}, "niggli", 5, [],
    ],
    ids=str,
)  # fmt: skip
def test_ways_to_read_crystals_that_there_are_not_are_refused(options, folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "read_options": options}))
    with pytest.raises(CheckpointError, match="is not a checkpoint of VAEModule"):
        VAEModule.from_pretrained(folder)
    save_checkpoint(make_vae(), tmp_path / "vae.ckpt")
    content = torch.load(tmp_path / "vae.ckpt", weights_only=True)
    torch.save({**content, "read_options": options}, tmp_path / "vae.ckpt")
    with pytest.raises(CheckpointError, match=r"vae\.ckpt is not a checkpoint of VAEModule"):
        VAEModule.load_from_checkpoint(tmp_path / "vae.ckpt")


def test_files_from_before_the_ways_to_read_crystals_were_recorded(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    del config["read_options"]
    (folder / "config.json").write_text(json.dumps(config))
    assert VAEModule.from_pretrained(folder).read_options is None
    save_checkpoint(make_vae(), tmp_path / "vae.ckpt")
    content = torch.load(tmp_path / "vae.ckpt", weights_only=True)
    del content["read_options"]
    torch.save(content, tmp_path / "vae.ckpt")
    old = VAEModule.load_from_checkpoint(tmp_path / "vae.ckpt")
    assert old.read_options is None
    old.save_pretrained(tmp_path / "again")
    assert VAEModule.from_pretrained(tmp_path / "again").read_options is None


def test_nothing_is_replaced_unasked(folder):
    before = (folder / "model.safetensors").read_bytes()
    other = make_vae(predict=False)
    with pytest.raises(OutputError, match="exists"):
        other.save_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    other.save_pretrained(folder, overwrite=True)
    assert not VAEModule.from_pretrained(folder).atom_type_predict
    with pytest.raises(OutputError, match=r"no config\.json"):
        other.save_pretrained(folder.parent, overwrite=True)
    assert [path.name for path in folder.parent.iterdir()] == ["vae"]


def test_weights_that_are_not_finite_are_not_passed_on(tmp_path):
    vae = make_vae()
    vae.quant_conv.weight.data[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match=r"quant_conv\.weight contains NaN or inf"):
        vae.save_pretrained(tmp_path / "vae")
    assert not list(tmp_path.iterdir())


def test_settings_that_are_not_finite_are_not_passed_on(tmp_path):
    parts = TransformerEncoder(**SIZES), TransformerDecoder(**SIZES)
    vae = VAEModule(*parts, lengths_delta=torch.inf, loss_weights={"kl": 0.1})
    with pytest.raises(
        CheckpointError, match=r"/new/vae is not written.* in hyper_parameters\.lengths_delta: use"
    ):
        vae.save_pretrained(tmp_path / "new" / "vae")
    assert not list(tmp_path.iterdir())


def edit(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def write(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


HEADER = struct.pack("<Q", 2**62)
ALLOCATE = json.dumps(
    {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
).encode()

DAMAGES = {
    "does not contain a model: .*config.json": lambda folder: (folder / "config.json").unlink(),
    "not contain a model: .*safetensors": lambda folder: (folder / "model.safetensors").unlink(),
    "was not written by": write("config.json", b'{"model_type": "bert"}'),
    "not written by xtal-latent": write("config.json", b"[1]"),
    "damaged": write("config.json", b'{"library":'),
    "damaged.*": write("config.json", b"\xff\xfe"),
    "damaged or": write("config.json", b"[" * 100_000),
    "is missing": lambda folder: edit(folder, lambda config: config.pop("hyper_parameters")),
    "HeaderTooLarge|header too large": write("model.safetensors", HEADER + b"{}"),
    "damaged or not": write("model.safetensors", b""),
    "damaged or not a": write("model.safetensors", HEADER[:5]),
    "damaged or not a model": write(
        "model.safetensors", struct.pack("<Q", len(ALLOCATE)) + ALLOCATE
    ),
    "size mismatch": lambda folder: edit(
        folder, lambda c: c["hyper_parameters"]["encoder"].update(d_model=2**15)
    ),
    "num_layers=1000000000": lambda folder: edit(
        folder, lambda c: c["hyper_parameters"]["encoder"].update(num_layers=10**9)
    ),
    "not among the allowed modules": lambda folder: edit(
        folder, lambda c: c["hyper_parameters"]["decoder"].update(_target_="os.system")
    ),
}


@pytest.mark.parametrize(("reason", "damage"), DAMAGES.items(), ids=range(len(DAMAGES)))
def test_a_damaged_folder_is_named(reason, damage, folder):
    damage(folder)
    with pytest.raises(CheckpointError, match=reason) as error:
        VAEModule.from_pretrained(folder)
    assert str(folder) in str(error.value)


def test_a_network_that_no_memory_holds_takes_none(folder):
    """The weights of such a config would take 16 GB per layer."""
    edit(folder, lambda c: c["hyper_parameters"]["encoder"].update(d_model=2**15, num_layers=5))
    with pytest.raises(CheckpointError):
        VAEModule.from_pretrained(folder)
    path = folder / "vae.ckpt"
    save_checkpoint(make_vae(), path)
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["decoder"]["dim_feedforward"] = 10**12
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="size mismatch"):
        VAEModule.load_from_checkpoint(path)


# The hub

COMMIT = "f" * 40


class Hub(BaseHTTPRequestHandler):
    """Answers the two requests with which the Hub client downloads a file: HEAD and GET."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        server = self.server
        server.requests.append((self.command, self.path, self.headers.get("Authorization")))
        if self.path.startswith("/elsewhere/"):
            return self.send(server.folder / self.path.split("/")[-1], body)
        owner, name, _, revision, file = self.path.lstrip("/").split("/")
        if (owner, name) != ("group", "vae"):
            return self.refuse(401 if owner == "private" else 404, "RepoNotFound")
        if revision not in ("main", "v1", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        if not (server.folder / file).is_file():
            return self.refuse(404, "EntryNotFound")
        if server.broken:
            return self.refuse(500, "")
        if file.endswith(".safetensors"):  # large files lie on other machines
            self.send_response(302)
            self.send_header("Location", f"/elsewhere/{file}")
            self.describe(server.folder / file, linked=True)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        return self.send(server.folder / file, body)

    def describe(self, path: Path, linked: bool = False) -> None:
        content = path.read_bytes()
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header(f"{'X-Linked-' if linked else ''}ETag", f'"{sha256(content).hexdigest()}"')
        if linked:
            self.send_header("X-Linked-Size", str(len(content)))

    def send(self, path: Path, body: bool) -> None:
        content = path.read_bytes()
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.describe(path)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if body and path.suffix == ".safetensors":
            self.server.cuts, cut = max(0, self.server.cuts - 1), self.server.cuts > 0
            content = content[: start + self.server.piece] if cut else content
        if body:
            self.wfile.write(content[start:])
            self.close_connection = True

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """A server with the repository `group/vae`; `download` is `from_pretrained` from there."""
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda seconds: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder, server.requests, server.cuts, server.broken = folder, [], 0, False
    server.piece = 1000  # bytes that come before a connection is cut off
    threading.Thread(
        target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}
    ).start()
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    cache = tmp_path / "cache"

    def download(name: str = "group/vae", **options) -> VAEModule:
        options = {"endpoint": server.address, "cache_dir": cache, "token": False, **options}
        return VAEModule.from_pretrained(name, **options)

    server.download, server.cache = download, cache
    yield server
    server.shutdown()
    server.server_close()


def test_a_repository_gives_the_same_module(hub):
    assert_same(hub.download(), make_vae())
    asked = Counter((command, path.split("/")[-1]) for command, path, _ in hub.requests)
    assert {name for _, name in asked} == {"config.json", "model.safetensors"}  # and no pickle
    assert not any(token for *_, token in hub.requests)


def test_it_is_downloaded_once(hub):
    hub.download()
    before = Counter(command for command, *_ in hub.requests)
    assert_same(hub.download(), make_vae())
    after = Counter(command for command, *_ in hub.requests)
    assert after["GET"] == before["GET"]
    hub.requests.clear()
    assert_same(hub.download(local_files_only=True), make_vae())
    assert not hub.requests


def test_revision_and_token_are_passed_on(hub):
    hub.download(revision="v1", token="hf_secret")
    paths, tokens = zip(*[(path, token) for _, path, token in hub.requests], strict=True)
    assert "/group/vae/resolve/v1/config.json" in paths
    assert "Bearer hf_secret" in tokens


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "group/unknown"}, r"no folder group/unknown, and no repository .* token"),
        ({"name": "private/vae"}, r"no folder private/vae, and no repository .* token"),
        ({"revision": "v9"}, "group/vae has no revision 'v9'"),
        (
            {"name": "some/folder/that/is/not/there"},
            "some/folder/that/is/not/there is neither a folder nor a valid repository name",
        ),
        ({"name": "../vae"}, r"\.\./vae is neither a folder nor a valid repository name"),
        ({"local_files_only": True}, "was never downloaded"),
        ({"endpoint": "http://127.0.0.1:9"}, "cannot be reached"),
    ],
)
def test_what_cannot_be_had_is_named(hub, options, reason):
    with pytest.raises(CheckpointError, match=reason):
        hub.download(**options)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_repository_of_something_else(hub, name):
    (hub.folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"group/vae does not contain a model.*{name}"):
        hub.download()


def test_a_hub_that_fails(hub):
    hub.broken = True
    with pytest.raises(CheckpointError, match="group/vae"):
        hub.download()


def test_a_download_that_is_cut_off_goes_on(hub):
    hub.cuts = 3
    assert_same(hub.download(), make_vae())


def test_a_download_that_never_ends_leaves_nothing_that_looks_whole(hub):
    hub.cuts = 10**9
    hub.piece = 0  # from the second connection on nothing comes
    with pytest.raises(CheckpointError, match="group/vae"):
        hub.download()
    assert not list(hub.cache.rglob("*.safetensors"))


def test_a_config_from_the_hub_names_only_our_classes(hub):
    edit(hub.folder, lambda c: c["hyper_parameters"]["encoder"].update(_target_="os.system"))
    with pytest.raises(CheckpointError, match="not among the allowed modules"):
        hub.download()


def test_publishing(monkeypatch):
    """The client is replaced, because its upload protocol involves several servers."""
    calls = []

    def upload_folder(self, repo_id, folder_path, revision):
        calls.append(("upload", repo_id, revision, self.token))
        assert_same(VAEModule.from_pretrained(folder_path), make_vae())
        return SimpleNamespace(commit_url="https://hub/commit/1")

    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **how: calls.append((name, how)))
    address = make_vae().push_to_hub("group/vae", private=True, token="hf_secret")
    assert address == "https://hub/commit/1"
    assert calls == [
        ("group/vae", {"private": True, "exist_ok": True}),
        ("upload", "group/vae", None, "hf_secret"),
    ]


def test_publishing_without_a_hub():
    with pytest.raises(CheckpointError, match="group/vae"):
        make_vae().push_to_hub("group/vae", endpoint="http://127.0.0.1:9", token="hf_secret")


# Checkpoints of a run


@pytest.mark.filterwarnings("ignore:The .*dataloader. does not have many workers")
def test_checkpoints_of_lightning_need_nothing_but_themselves(tmp_path):
    """The states of optimizer, loops and callbacks in them consist of plain types, too."""
    vae = make_vae().train()
    loader = DataLoader([make_batch()] * 2, batch_size=None)
    callbacks = [
        ModelCheckpoint(tmp_path / "run", "best", "val/loss", enable_version_counter=False),
        LastCheckpoint(tmp_path / "run", every_n_steps=1),
        LearningRateMonitor(),
        EMAWeightAveraging(decay=0.9),
        Timer("00:01:00:00"),
    ]
    trainer = build_trainer(
        accelerator="cpu", precision="32-true", max_epochs=2, default_root_dir=tmp_path,
        callbacks=callbacks, logger=CSVLogger(tmp_path), enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(vae, loader, loader)
    for name in ("best", "last"):
        path = tmp_path / "run" / f"{name}.ckpt"
        content = torch.load(path, weights_only=True)
        assert content["optimizer_states"][0]["state"]
        assert {"loops", "callbacks", "lr_schedulers"} <= set(content)
        assert content["training_set"] == TRAINING_SET
        assert content["read_options"] == READ_OPTIONS
        module = VAEModule.load_from_checkpoint(path)
        assert module.training_set == TRAINING_SET
        for key, weight in module.state_dict().items():
            assert torch.equal(weight, content["state_dict"][key])
        assert_same(VAEModule.load_from_checkpoint(path, weights_only=False), module)
        module.save_pretrained(tmp_path / name)
        assert_same(VAEModule.from_pretrained(tmp_path / name), module)


def to_meta(storage, location):
    return torch.serialization.default_restore_location(storage, "meta")


def keep(storage, location):
    return storage


# a device that is there without a GPU, and that is not the one by default
@pytest.mark.parametrize(
    ("map_location", "device"),
    [
        ("meta", "meta"), (torch.device("meta"), "meta"), ({"cpu": "meta"}, "meta"),
        (to_meta, "meta"), ("cpu", "cpu"), (torch.device("cpu"), "cpu"), ({"cpu": "cpu"}, "cpu"),
        ({"cuda:0": "meta"}, "cpu"), (keep, "cpu"), (None, "cpu"),
    ],
    ids=lambda given: getattr(given, "__name__", str(given)),  # without the address of a function
)  # fmt: skip
def test_a_module_is_on_the_device_that_one_says(tmp_path, map_location, device):
    vae = make_vae()
    save_checkpoint(vae, tmp_path / "vae.ckpt")
    found = VAEModule.load_from_checkpoint(tmp_path / "vae.ckpt", map_location=map_location)
    assert found.device.type == device
    tensors = [*found.parameters(), *found.buffers()]
    assert {tensor.device.type for tensor in tensors} == {device}
    assert not found.training
    assert found.read_options == READ_OPTIONS
    if device == "cpu":
        assert_same(found, vae)
        assert {parameter.requires_grad for parameter in found.parameters()} == {True}


@pytest.mark.parametrize("device", ["meta", torch.device("meta"), "cpu", None], ids=str)
def test_a_folder_is_read_to_the_device_that_one_says(folder, device):
    found = VAEModule.from_pretrained(folder, map_location=device)
    expected = torch.device(device or "cpu")
    assert found.device == expected
    assert {parameter.device for parameter in found.parameters()} == {expected}
    assert not found.training


@pytest.mark.parametrize("device", ["cuda:99", "tpu", torch.device("cuda:99")], ids=str)
def test_a_device_that_is_not_there_is_named(folder, tmp_path, device):
    save_checkpoint(make_vae(), tmp_path / "vae.ckpt")
    for load, path in (
        (VAEModule.load_from_checkpoint, tmp_path / "vae.ckpt"),
        (VAEModule.from_pretrained, folder),
    ):
        with pytest.raises(UserError, match=f"map_location='{device}' cannot be used"):
            load(path, map_location=device)


def test_weights_in_half_precision_make_a_module_in_full(tmp_path):
    vae = make_vae()
    before = {name: weight.clone() for name, weight in vae.state_dict().items()}
    save_checkpoint(vae.half(), tmp_path / "half.ckpt")
    loaded = VAEModule.load_from_checkpoint(tmp_path / "half.ckpt").state_dict()
    for name, weight in before.items():
        assert loaded[name].dtype == torch.float32
        torch.testing.assert_close(loaded[name], weight, rtol=1e-3, atol=1e-4)
