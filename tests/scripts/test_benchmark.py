"""The benchmarks run and report the expected rows; speed itself is not tested."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import torch

from src.utils.checkpoints import save_checkpoint
from src.utils.processes import num_cpus
from tests.ldm_module.conftest import make_ldm

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    spec = importlib.util.spec_from_file_location("benchmark", SCRIPTS / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in [name for name in sys.modules if name.startswith("benchmarks")]:
        del sys.modules[name]


def run(benchmark, tmp_path, *arguments: str) -> list[dict]:
    path = tmp_path / "rows.json"
    benchmark.main([*arguments, "--rounds", "1", "--json", str(path)])
    rows = json.loads(path.read_text())
    assert all(set(row) == {"bench", "variant", "value", "unit", "ratio"} for row in rows)
    assert all(row["value"] > 0 for row in rows)
    return rows


@pytest.mark.slow
def test_match(benchmark, tmp_path):
    rows = run(benchmark, tmp_path, "match", "--crystals", "20")
    assert [row["variant"] for row in rows[:2]] == ["StructureMatcher", "NumPy"]
    assert rows[1]["ratio"] > 1
    first, second = rows[-8::2], rows[-7::2]  # noise curve, novelty, workers, end of training
    variants = [(one["variant"], two["variant"]) for one, two in zip(first, second, strict=True)]
    ours = ("pymatgen", "fast")
    assert variants == [ours, ours, ("1 process", "2 processes"), ours]
    assert [row["ratio"] for row in first] == [1.0] * 4
    assert all(second[k]["ratio"] > 1 for k in (0, 1, 3))


@pytest.mark.slow
def test_judge(benchmark, tmp_path, monkeypatch, capsys):
    from benchmarks import judge

    monkeypatch.setattr(judge, "POTENTIAL", "not.installed")
    rows = run(benchmark, tmp_path, "judge", "--crystals", "20")
    assert {row["variant"] for row in rows} >= {"validity", "matching", "symmetrize"}
    assert rows[-1]["ratio"] > 3  # our fingerprints, with more in them, and matminer's
    assert "energies and relaxations are left out" in capsys.readouterr().out


@pytest.mark.slow
def test_large(benchmark, tmp_path, monkeypatch):
    from src.data import flat

    monkeypatch.setattr(flat, "LARGE", 0)  # so that rows are read from the file
    rows = run(benchmark, tmp_path, "large", "--crystals", "60000")
    assert [row["unit"] for row in rows] == ["MiB", "MiB"] + 3 * ["crystals/s"]
    # 60,000 crystals with 10 atoms of 13 bytes, 40 bytes each and their number
    assert rows[0]["value"] == pytest.approx(60_000 * (130 + 40 + 8) / 2**20, rel=0.02)


@pytest.mark.slow
def test_prepare(benchmark, tmp_path):
    rows = run(benchmark, tmp_path, "prepare", "--crystals", "3000")
    assert [row["unit"] for row in rows] == 3 * ["crystals/s"] + 3 * ["s for 100,000"] + 3 * ["MiB"]
    assert rows[0]["value"] * rows[3]["value"] == pytest.approx(1e5)


@pytest.mark.slow
def test_train(benchmark, tmp_path):
    rows = run(benchmark, tmp_path, "train", "--preset", "tiny", "--crystals", "64",
               "--batch-size", "32")  # fmt: skip
    speed = {row["variant"]: row for row in rows if row["unit"] == "crystals/s"}
    assert {"stock-fp32", "packed-fp32", "lightning-bf16"} <= set(speed)
    assert speed["stock-fp32"]["ratio"] == 1.0
    shares = [row["value"] for row in rows if row["unit"] == "%"]
    assert all(0 < share < 150 for share in shares)


def test_infer(benchmark, tmp_path, monkeypatch):
    from benchmarks import infer

    monkeypatch.setattr(infer, "NUM_SAMPLES", 100)
    rows = run(benchmark, tmp_path, "infer", "--preset", "tiny", "--crystals", "64")
    assert {row["bench"].split(": ")[1] for row in rows if row["unit"] == "crystals/s"} == {
        "encode", "decode", "sample", "sample to Structure",
    }  # fmt: skip


@pytest.mark.slow
def test_sample(benchmark, tmp_path, monkeypatch):
    from benchmarks import sample

    monkeypatch.setattr(sample, "NUM_JUDGED", 8)
    monkeypatch.setattr(sample, "DENSE_STEPS", 20)
    save_checkpoint(make_ldm(), tmp_path / "ldm.ckpt")
    path = tmp_path / "rows.json"
    given = ["--crystals", "8", "--files", "4", "--rounds", "1", "--json", str(path)]
    benchmark.main(["sample", *given, "--checkpoint", str(tmp_path / "ldm.ckpt")])
    rows = json.loads(path.read_text())
    speed = [row for row in rows if row["unit"] == "crystals/s"]
    assert [row["ratio"] for row in speed[::4]] == [1.0, 1.0]
    assert sum(row["unit"] == "%" for row in rows) == 12
    assert [row["variant"] for row in rows[-3:]] == ["50 steps", "20 steps", "10 steps"]


def test_the_dense_sampler_leaves_out_padding(benchmark):
    from benchmarks import sample

    dense = sample.DenseSampler(make_ldm()).eval()
    x, t = torch.randn(2, 20, dense.latent_dim), torch.tensor([500, 500])
    padding = torch.arange(20) >= torch.tensor([[3], [20]])
    with torch.no_grad():
        one = dense.predict_noise(x, t, padding)
        other = dense.predict_noise(x.masked_fill(padding[..., None], 9.0), t, padding)
    torch.testing.assert_close(one[0, :3], other[0, :3])
    torch.testing.assert_close(one[1], other[1])


@pytest.mark.slow
def test_busy(benchmark, tmp_path):
    before = dict(os.environ)
    rows = run(benchmark, tmp_path, "busy", "--crystals", "32", "--batch-size", "16")
    benches = list(dict.fromkeys(row["bench"] for row in rows))
    assert [bench.rpartition(", ")[2] for bench in benches] == [
        "no busy processes beside", "1 busy process beside",
    ]  # fmt: skip
    for bench in benches:
        variants = [row["variant"] for row in rows if row["bench"] == bench]
        assert variants[0].startswith("torch's default")
        assert variants[-1] == "1 thread"
        assert num_cpus() == 1 or f"passive, {num_cpus()} threads" in variants
        assert next(row["ratio"] for row in rows if row["bench"] == bench) == 1.0
    assert dict(os.environ) == before


@pytest.mark.slow
def test_data(benchmark, tmp_path):
    rows = run(benchmark, tmp_path, "data")
    assert {row["variant"] for row in rows} == {"pymatgen", "PyG collate", "xtal-latent"}


@pytest.mark.slow
def test_scale(benchmark, tmp_path, monkeypatch):
    from benchmarks import scale

    monkeypatch.setattr(scale, "ATOMS", (5, 10))
    monkeypatch.setattr(scale, "BATCHES", (16, 64))
    monkeypatch.setattr(scale, "PRESETS", {"tiny": scale.PRESETS["tiny"]})
    picture = tmp_path / "scale.png"
    rows = run(benchmark, tmp_path, "scale", "--preset", "tiny", "--picture", str(picture))
    assert len([row for row in rows if row["unit"] == "µs/atom"]) == 5
    assert picture.stat().st_size > 5_000
