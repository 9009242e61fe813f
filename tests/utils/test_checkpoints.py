"""Nothing in a checkpoint is executed, and a bad one is named."""

import os
import random

import pytest
import torch

from src.utils.checkpoints import CheckpointError, load_checkpoint


class Bomb:
    """What a malicious pickle holds: a call to run when it is opened."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.ckpt"
    content = {
        "state_dict": {"weight": torch.arange(600.0)},
        "hyper_parameters": {"encoder": {"_target_": "a.B", "lr": 1e-3, "betas": [0.5, None]}},
    }
    torch.save(content, path)
    return path


def test_plain_content_comes_back(good):
    checkpoint = load_checkpoint(str(good))
    assert torch.equal(checkpoint["state_dict"]["weight"], torch.arange(600.0))
    assert checkpoint["hyper_parameters"]["encoder"]["betas"] == [0.5, None]


def test_map_location(good):
    assert load_checkpoint(good, map_location="meta")["state_dict"]["weight"].is_meta


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_not_run(tmp_path, zipped):
    trace, path = tmp_path / "trace", tmp_path / "bad.ckpt"
    content = {"state_dict": {}, "hyper_parameters": Bomb(f"touch {trace}")}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"bad\.ckpt holds more than plain tensors"):
        load_checkpoint(path)
    assert not trace.exists()

    torch.load(path, weights_only=False)  # the bomb is a real one
    assert trace.exists()


def test_an_object_in_a_checkpoint_is_refused(tmp_path):
    path = tmp_path / "module.ckpt"
    torch.save({"state_dict": {}, "encoder": torch.nn.Linear(1, 1)}, path)
    with pytest.raises(CheckpointError, match=r"module\.ckpt holds more than plain"):
        load_checkpoint(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file(good, share):
    content = good.read_bytes()
    good.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"good\.ckpt.*damaged"):
        load_checkpoint(good)


def test_a_text_file(tmp_path):
    path = tmp_path / "notes.ckpt"
    path.write_text("epoch,loss\n1,0.5\n")
    with pytest.raises(CheckpointError, match=r"notes\.ckpt"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [{"weight": torch.zeros(1)}, torch.zeros(1), [1, 2]])
def test_no_state_dict(tmp_path, content):
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"weights\.pt is no checkpoint: .* no state_dict"):
        load_checkpoint(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*missing\.ckpt"):
        load_checkpoint(tmp_path / "missing.ckpt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_bytes_never_raise_anything_else(tmp_path, zipped):
    path = tmp_path / "damaged.ckpt"
    torch.save({"state_dict": {"w": torch.ones(9)}}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(rng.randrange(1, 8)):
            damaged[rng.randrange(min(len(content), 700))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            load_checkpoint(path)
        except CheckpointError:
            refused += 1
    assert refused > 100
