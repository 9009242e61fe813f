"""Nothing in a checkpoint is executed, errors name bad ones, and none is written partially."""

import os
import random
import resource
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from src.utils.checkpoints import (
    AtomicCheckpointIO,
    CheckpointError,
    find_last,
    load_checkpoint,
    load_resumable,
    write_checkpoint,
)

ROOT = Path(__file__).resolve().parents[2]


class Bomb:
    """What a malicious pickle contains: a call that runs when it is opened."""

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
    with pytest.raises(CheckpointError, match=r"bad\.ckpt cannot be opened safely"):
        load_checkpoint(path)
    assert not trace.exists()

    torch.load(path, weights_only=False)  # the bomb is a real one
    assert trace.exists()


def test_an_object_in_a_checkpoint_is_refused(tmp_path):
    path = tmp_path / "module.ckpt"
    torch.save({"state_dict": {}, "encoder": torch.nn.Linear(1, 1)}, path)
    with pytest.raises(CheckpointError, match=r"module\.ckpt cannot be opened safely"):
        load_checkpoint(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file(good, share):
    content = good.read_bytes()
    good.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"good\.ckpt.*damaged"):
        load_checkpoint(good)


def test_a_compressed_archive_is_refused_unread(tmp_path):
    """40 kB could unpack to 40 MB, and 40 MB to more than the memory of a machine."""
    path, bomb = tmp_path / "large.ckpt", tmp_path / "bomb.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(10**7)}}, path)
    with (
        zipfile.ZipFile(path) as old,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert bomb.stat().st_size < 10**5
    with pytest.raises(CheckpointError, match=r"bomb\.ckpt is not a checkpoint: it is compressed"):
        load_checkpoint(bomb)


def test_a_text_file(tmp_path):
    path = tmp_path / "notes.ckpt"
    path.write_text("epoch,loss\n1,0.5\n")
    with pytest.raises(CheckpointError, match=r"notes\.ckpt"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [{"weight": torch.zeros(1)}, torch.zeros(1), [1, 2]])
def test_no_state_dict(tmp_path, content):
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"weights\.pt is not a checkpoint: .* no state_dict"):
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


# Writing


def content(value: float = 1.0) -> dict:
    return {
        "state_dict": {"weight": torch.full((1000,), value), "count": torch.tensor(3)},
        "loops": {},
        "optimizer_states": [],
        "global_step": 7,
    }


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint(content(), path)
    assert torch.equal(load_checkpoint(path)["state_dict"]["weight"], torch.ones(1000))
    assert [p.name for p in path.parent.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    path = tmp_path / "a.ckpt"
    write_checkpoint(content(), path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"a\.ckpt was not written, .*weight contains"):
        write_checkpoint(content(value), path)
    assert path.read_bytes() == before


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    """A limit on the file size makes the system refuse the second half."""
    path = tmp_path / "a.ckpt"
    write_checkpoint(content(), path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"a\.ckpt cannot be written .*is unchanged"):
            write_checkpoint(content(2.0), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


KILLED_WHILE_WRITING = """
import os, signal, sys, torch
from src.utils.checkpoints import write_checkpoint
write_checkpoint({"state_dict": {"weight": torch.ones(1000)}}, sys.argv[1])
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
write_checkpoint({"state_dict": {"weight": torch.zeros(1000)}}, sys.argv[1])
"""


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_writes(tmp_path):
    path = tmp_path / "last.ckpt"
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, path], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "last.ckpt.partial").exists()
    assert torch.equal(load_checkpoint(path)["state_dict"]["weight"], torch.ones(1000))
    write_checkpoint(content(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


# Going on


def test_last_is_last_however_new_others_are(tmp_path):
    assert find_last(tmp_path) is None
    for name in ("last", "best"):
        write_checkpoint(content(), tmp_path / f"{name}.ckpt")
    path, found = find_last(tmp_path)  # type: ignore[misc]
    assert (path.name, found["global_step"]) == ("last.ckpt", 7)


def test_a_damaged_one_is_named_and_the_newest_good_one_taken(tmp_path, caplog):
    for age, name in enumerate(("last", "best", "middle", "oldest")):
        write_checkpoint(content(), tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (1e9 - age, 1e9 - age))
    (tmp_path / "last.ckpt").write_bytes(b"PK")
    (tmp_path / "best.ckpt").write_bytes(b"")
    path, _ = find_last(tmp_path)  # type: ignore[misc]
    assert path.name == "middle.ckpt"
    named = [record.message.split()[0] for record in caplog.records]
    assert named == [str(tmp_path / "last.ckpt"), str(tmp_path / "best.ckpt")]


def test_all_are_damaged(tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"none of the checkpoints in .* choose another"):
        find_last(tmp_path)


def test_weights_alone_are_no_run(good):
    with pytest.raises(CheckpointError, match=r"good\.ckpt contains weights but not .* ckpt_path"):
        load_resumable(good)
