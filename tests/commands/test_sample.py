"""Crystals from the prior, as an iterator and as a command."""

import errno
import gc
import hashlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import ase.io
import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from pymatgen.core import Composition, Lattice, Structure

import src.commands.sample
import src.commands.sample_files
from src.commands.sample import sample, sample_crystals
from src.commands.sample_files import Symmetrizer, write_samples
from src.data import CrystalBatch
from src.data.cif import read_cif
from src.data.compositions import parse_composition
from src.data.readers import DataError
from src.data.structures import read_structures
from src.utils.checkpoints import CheckpointError, save_checkpoint
from src.utils.errors import UserError
from src.utils.output import OutputError
from src.vae_module import VAEModule
from src.vae_module.decoders.transformer import TransformerDecoder
from src.vae_module.encoders.transformer import TransformerEncoder

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"d_model": 16, "nhead": 2, "num_layers": 1, "dim_feedforward": 16}
TRAINING_SET = {"num_crystals": 4, "num_atoms": {"2": 3, "6": 1}, "elements": {"8": 12}}


def make_vae(atom_type_predict: bool = True, training_set: dict | None = None) -> VAEModule:
    """An untrained VAE whose cells are roughly cubes of 3 Å per atom."""
    torch.manual_seed(0)
    vae = VAEModule(
        TransformerEncoder(**SIZES, max_num_elements=60),
        TransformerDecoder(**SIZES, max_num_elements=60, atom_type_predict=atom_type_predict),
        latent_dim=4,
    )
    with torch.no_grad():
        vae.decoder.lattice_head.weight *= 0.1
        vae.decoder.lattice_head.bias.copy_(torch.tensor([3.0] * 3 + [math.pi / 2] * 3))
    vae.training_set = training_set
    return vae.eval()


def crystals_of(batches) -> list[tuple]:
    return [
        (data.atom_types.tolist(), data.frac_coords.numpy(), data.lattices[0].numpy())
        for batch in batches
        for data in batch.to_data_list()
    ]


# In Python


@pytest.mark.parametrize("atom_type_predict", [True, False])
def test_a_sample_depends_on_seed_and_index_alone(atom_type_predict):
    vae = make_vae(atom_type_predict, TRAINING_SET)
    compositions = None if atom_type_predict else ["NaCl", "SrTiO3"]

    def draw(num_samples, batch_size, seed=5):
        return crystals_of(
            sample_crystals(
                vae, num_samples, compositions=compositions, seed=seed, batch_size=batch_size
            )
        )

    one, other, fewer = draw(100, 7), draw(100, 64), draw(20, 64)
    assert len(one) == len(other) == 100
    for a, b in zip(one + one[:20], other + fewer, strict=True):
        assert a[0] == b[0]
        offset = a[1] - b[1]
        np.testing.assert_allclose(offset, np.rint(offset), atol=1e-5)
        np.testing.assert_allclose(a[2], b[2], atol=1e-4)
    another = draw(100, 64, seed=6)
    assert not any(
        a[1].shape == b[1].shape and np.allclose(a[1], b[1], atol=1e-3)
        for a, b in zip(one, another, strict=True)
    )


def test_numbers_of_atoms_are_those_of_the_training_set():
    (batch,) = sample_crystals(make_vae(training_set=TRAINING_SET), 2000, batch_size=2000)
    assert isinstance(batch, CrystalBatch)
    assert batch.num_atoms.unique().tolist() == [2, 6]
    # 2000 draws with p = 3/4: standard deviation 0.01
    assert (batch.num_atoms == 2).float().mean() == pytest.approx(0.75, abs=0.04)
    assert (batch.atom_types >= 1).all()


def test_numbers_of_atoms_that_are_asked_for():
    vae = make_vae(training_set=TRAINING_SET)
    (batch,) = sample_crystals(vae, 10, num_atoms=3)
    assert batch.num_atoms.tolist() == [3] * 10
    (batch,) = sample_crystals(vae, 200, num_atoms=[1, 9])
    assert batch.num_atoms.unique().tolist() == [1, 9]
    assert 70 < (batch.num_atoms == 9).sum() < 130


@pytest.mark.parametrize(
    ("atom_type_predict", "asked", "said"),
    [
        (True, {"num_atoms": [2, 6]}, []),
        (
            True,
            {"num_atoms": [2, 7]},
            ["7 atoms are asked .* on up to 6"],
        ),
        (False, {"compositions": ["O6"]}, []),
        (False, {"compositions": ["4*NaO"]}, ["up to 8 atoms", "trained on has Na"]),
    ],
)
def test_requests_beyond_the_training_set_are_said(caplog, atom_type_predict, asked, said):
    sample_crystals(make_vae(atom_type_predict, TRAINING_SET), 4, **asked)
    assert len(caplog.messages) == len(said)
    assert all(re.search(*pair) for pair in zip(said, caplog.messages, strict=True))


def test_latents_are_standard_normal():
    vae = make_vae()
    seen = []
    decode = vae.decode
    vae.decode = lambda encoded: (seen.append(encoded["x"]), decode(encoded))[1]
    list(sample_crystals(vae, 500, num_atoms=10))
    latents = torch.cat(seen)
    assert latents.shape == (5000, 4)
    assert latents.mean().item() == pytest.approx(0, abs=0.03)
    assert latents.std().item() == pytest.approx(1, abs=0.03)
    assert torch.corrcoef(latents.T).fill_diagonal_(0).abs().max() < 0.06


def test_every_sample_has_the_composition_that_was_asked_for():
    asked = ["NaCl", "2*SrTiO3", "Fe3O4"]
    crystals = crystals_of(sample_crystals(make_vae(False), 8, compositions=asked, batch_size=3))
    for index, (atom_types, _, _) in enumerate(crystals):
        assert atom_types == parse_composition(asked[index % 3]).tolist()


@pytest.mark.parametrize(
    ("formula", "atom_types"),
    [
        ("NaCl", [11, 17]),
        ("4*NaCl", [11] * 4 + [17] * 4),
        (" 2 * Ca(OH)2 ", [20] * 2 + [8] * 4 + [1] * 4),
        ("Si8", [14] * 8),
    ],
)
def test_parse_composition(formula, atom_types):
    assert parse_composition(formula).tolist() == atom_types


@pytest.mark.parametrize("formula", ["Fe0.5Ni0.5", "NaQq", "", "3*", "X2", "0*NaCl", "NaCl*2"])
def test_what_is_no_composition(formula):
    with pytest.raises(ValueError, match="composition"):
        parse_composition(formula)


@pytest.mark.parametrize(
    ("atom_type_predict", "arguments", "message"),
    [
        (True, {}, "does not record how many atoms"),
        (True, {"num_atoms": 0}, "num_atoms must be a positive integer"),
        (True, {"num_atoms": []}, "num_atoms must be a positive integer"),
        (True, {"num_atoms": [2, 2.5]}, "num_atoms must be a positive integer"),
        (True, {"num_atoms": 3, "num_samples": 0}, "num_samples must be at least 1"),
        (True, {"num_atoms": 3, "batch_size": 0}, "batch_size must be at least 1"),
        (True, {"num_atoms": 3, "seed": -1}, "seed must not be negative"),
        (True, {"compositions": ["NaCl"]}, "predicts atom types and takes no compositions"),
        (False, {}, "does not predict atom types: set compositions"),
        (False, {"compositions": ["NaCl"], "num_atoms": 2}, "which determine the number of atoms"),
        (False, {"compositions": ["NaCl"] * 9}, "8 samples are too few for 9"),
        (False, {"compositions": ["NaAu"]}, "Au has atomic number 79.* 1 to 59"),
    ],
)
def test_what_cannot_be_asked_for_is_said_at_once(atom_type_predict, arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_crystals(make_vae(atom_type_predict), **{"num_samples": 8, **arguments})


# As a command


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    save_checkpoint(make_vae(True, TRAINING_SET), folder / "dng.ckpt")
    save_checkpoint(make_vae(False), folder / "csp.ckpt")
    return folder


@pytest.fixture
def config(tmp_path, checkpoints):
    def make(*overrides: str):
        common = [f"ckpt_path={checkpoints}/dng.ckpt", f"output={tmp_path}/out", "device=cpu"]
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            return compose("sample_vae", overrides=[*common, "num_samples=12", *overrides])

    return make


def read_samples(folder: Path) -> dict:
    return json.loads((folder / "samples.json").read_text())


@pytest.mark.parametrize("format", ["folder", "zip"])
def test_the_folder_holds_the_samples_in_three_forms(config, checkpoints, tmp_path, format):
    header = sample(config(f"format={format}", "batch_size=5", "seed=3"))
    out = tmp_path / "out"
    cifs = out / ("cifs" if format == "folder" else "cifs.zip")
    assert {path.name for path in out.iterdir()} == {cifs.name, "samples.extxyz", "samples.json"}
    content = read_samples(out)
    rows = content.pop("samples")
    assert content == header
    checkpoint = (checkpoints / "dng.ckpt").read_bytes()
    assert header["checkpoint_sha256"] == hashlib.sha256(checkpoint).hexdigest()
    assert (header["seed"], header["num_samples"], header["counts"]["written"]) == (3, 12, 12)

    (batch,) = sample_crystals(make_vae(True, TRAINING_SET), 12, seed=3)
    expected = batch.to_structure()
    found, skipped = read_structures(cifs)
    frames = ase.io.read(out / "samples.extxyz", ":")
    assert skipped == []
    assert [item.id for item in found] == [row["id"] for row in rows]
    assert [atoms.info["id"] for atoms in frames] == [row["id"] for row in rows]
    for row, item, atoms, structure in zip(rows, found, frames, expected, strict=True):
        assert row["formula"] == structure.formula == item.structure.formula
        assert row["num_atoms"] == len(structure)
        assert item.structure.lattice.abc == pytest.approx(structure.lattice.abc, rel=1e-5)
        assert atoms.cell.volume == pytest.approx(structure.volume, rel=1e-4)
        distances = structure.distance_matrix + 9 * np.eye(len(structure))
        assert row["valid_structure"] == (distances.min() >= 0.5)
        assert (row["reason"] is None) == row["valid_structure"]
    assert header["counts"]["valid_structure"] == sum(row["valid_structure"] for row in rows)


def test_compositions_of_the_command(config, checkpoints, tmp_path):
    csp = f"ckpt_path={checkpoints}/csp.ckpt"
    (tmp_path / "formulas.txt").write_text("NaCl\n\n4*SrTiO3\n")
    for given in ("[NaCl,4*SrTiO3]", "'NaCl,4*SrTiO3'", f"{tmp_path}/formulas.txt"):
        sample(config(csp, f"compositions={given}", "overwrite=true"))
        rows = read_samples(tmp_path / "out")["samples"]
        formulas = [Composition("NaCl").formula, Composition("Sr4Ti4O12").formula] * 6
        assert [row["formula"] for row in rows] == formulas


def test_compositions_are_judged(config, checkpoints, tmp_path):
    csp = f"ckpt_path={checkpoints}/csp.ckpt"
    counts = sample(config(csp, "compositions=[NaCl,NaCl5]"))["counts"]
    rows = read_samples(tmp_path / "out")["samples"]
    assert [row["valid_composition"] for row in rows] == [True, False] * 6
    assert counts["valid_composition"] == 6
    assert counts["valid"] == sum(row["valid_structure"] for row in rows[::2])


def test_only_valid_samples_are_written(config, checkpoints, tmp_path, caplog):
    given = (f"ckpt_path={checkpoints}/csp.ckpt", "compositions=[NaCl,NaCl5]", "only_valid=true")
    counts = sample(config(*given))["counts"]
    rows = read_samples(tmp_path / "out")["samples"]
    valid = [row["id"] for row in rows if row["valid_structure"] and row["valid_composition"]]
    assert [row["id"] for row in rows if row["written"]] == valid
    assert 0 < counts["written"] == counts["valid"] == len(valid) < len(rows) == 12
    assert sorted(path.stem for path in (tmp_path / "out" / "cifs").iterdir()) == valid
    assert "are not valid" in caplog.text


def test_wild_samples_are_said_to_be_invalid_and_not_written(config, monkeypatch, tmp_path, caplog):
    reconstruct = VAEModule.reconstruct

    def wild(self, decoded, batch):
        crystals = reconstruct(self, decoded, batch)
        lattices, frac_coords = crystals.lattices.clone(), crystals.frac_coords.clone()
        lattices[0] = math.nan
        lattices[1, 2] = 0
        lattices[2] *= 1e6
        lattices[3] = math.inf
        frac_coords[crystals.batch == 4] = math.nan
        lattices[5] = torch.eye(3) * 0.4
        return crystals.replace(lattices=lattices, frac_coords=frac_coords)

    monkeypatch.setattr(VAEModule, "reconstruct", wild)
    counts = sample(config())["counts"]
    rows = read_samples(tmp_path / "out")["samples"]
    assert [row["written"] for row in rows] == [False] * 5 + [True] * 7
    assert [row["valid_structure"] for row in rows[:6]] == [False] * 6
    assert "not a number" in rows[0]["reason"]
    assert "no volume" in rows[1]["reason"]
    assert "not finite" in rows[4]["reason"]
    assert "closer than 0.5" in rows[5]["reason"]
    assert counts["written"] == 7
    assert len(list((tmp_path / "out" / "cifs").iterdir())) == 7
    assert len(ase.io.read(tmp_path / "out" / "samples.extxyz", ":")) == 7
    assert "5 samples could not be written" in caplog.text


def test_a_model_of_which_nothing_can_be_written(config, monkeypatch, tmp_path):
    vae = make_vae()
    with torch.no_grad():
        vae.decoder.lattice_head.bias.fill_(math.nan)
    monkeypatch.setattr(src.commands.sample, "load_vae", lambda _: vae)
    with pytest.raises(ValueError, match="none of the 12 samples"):
        sample(config("num_atoms=2"))
    assert list(tmp_path.iterdir()) == []


def test_results_are_replaced_only_when_asked(config, tmp_path):
    sample(config())
    with pytest.raises(OutputError, match="exists"):
        sample(config())
    sample(config("overwrite=true", "num_samples=3", "num_atoms=[2,3]"))
    content = read_samples(tmp_path / "out")
    assert len(content["samples"]) == content["counts"]["written"] == 3
    assert content["num_atoms"] == [2, 3]


@pytest.mark.parametrize("format", ["folder", "zip"])
def test_a_full_disk_leaves_nothing(config, monkeypatch, tmp_path, format):
    calls = []

    def full(crystal, name):
        calls.append(name)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return "text"

    monkeypatch.setattr(src.commands.sample_files, "write_cif", full)
    with pytest.raises(OSError, match="No space"):
        sample(config(f"format={format}"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["text", "truncated", "other"])
def test_what_is_no_checkpoint(config, checkpoints, tmp_path, content):
    path = tmp_path / "bad.ckpt"
    if content == "other":
        torch.save({"state_dict": {"weight": torch.zeros(3)}, "hyper_parameters": {}}, path)
    else:
        path.write_bytes(
            b"hello" if content == "text" else (checkpoints / "dng.ckpt").read_bytes()[:5000]
        )
    with pytest.raises(CheckpointError, match=r"bad\.ckpt"):
        sample(config(f"ckpt_path={path}"))
    assert not (tmp_path / "out").exists()


def test_a_report_beside_known_crystals(config, tmp_path, monkeypatch):
    seen = []

    def report(folder, *known):
        assert (folder / "samples.json").is_file()
        seen.append(known)

    monkeypatch.setattr(src.commands.sample, "write_samples_report", report)
    shutil.copy(config().ckpt_path, tmp_path / "dng.ckpt")
    here = [f"ckpt_path={tmp_path}/dng.ckpt", "report=true", "overwrite=true", "num_samples=2"]
    sample(config(*here))
    rows = pd.read_csv(ROOT / "data" / "prototypes" / "test.csv", nrows=3)
    rows.to_csv(tmp_path / "known.csv.gz", index=False)
    sample(config(*here))  # found beside the checkpoint
    sample(config(*here, f"known={ROOT}/data/prototypes/val.csv"))
    assert [len(known[0]) if known else 0 for known in seen] == [0, 3, 500]
    with pytest.raises(UserError, match="set report=true"):
        sample(config("known=x"))
    with pytest.raises(DataError, match="no file or folder"):
        sample(config(*here, "known=nowhere.csv"))


def test_samples_are_symmetrized(tmp_path):
    """A sample that is rock salt but for some noise becomes exactly that."""
    salt = Structure(
        Lattice.cubic(2.82).matrix @ (np.ones((3, 3)) - np.eye(3)),
        ["Na", "Cl"],
        [[0.01, 0, 0], [0.5, 0.5, 0.5]],
    )
    broken = Structure(Lattice.cubic(4), ["Na"], [[np.nan, 0, 0]])
    batch = CrystalBatch.from_structures([salt, broken])
    symmetrizer = Symmetrizer(0.2)
    rows = io.StringIO()
    counts = write_samples(iter([batch]), range(2), tmp_path, "folder", rows, symmetrizer)
    assert counts["written"] == 1
    first, second = json.loads(f"[{rows.getvalue()}]")
    assert (first["space_group_before"], first["space_group"]) == (44, 225)
    assert second.keys() == first.keys() - {"space_group", "space_group_before", "displacement"}
    figures = symmetrizer.figures()
    assert figures["num_gained_symmetry"] == 1
    assert 0.01 < figures["displacement_median"] == first["displacement"] < 0.05
    (found,), _ = read_structures(tmp_path / "samples.extxyz")
    assert found.structure.get_space_group_info(1e-4)[1] == 225
    with pytest.raises(UserError, match="positive tolerance"):
        Symmetrizer(-1)


def test_an_unknown_format(config):
    with pytest.raises(ValueError, match="format must be folder or zip, not 'tar'"):
        sample(config("format=tar"))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_samples(config, checkpoints, monkeypatch):
    describe, live = src.commands.sample_files._describe, []

    def watched(id, *args):
        if id in ("sample-000100", "sample-001100"):
            gc.collect()
            live.append(tracemalloc.get_traced_memory()[0])
        return describe(id, *args)

    monkeypatch.setattr(src.commands.sample_files, "_describe", watched)
    tracemalloc.start()
    try:
        csp = [f"ckpt_path={checkpoints}/csp.ckpt", "compositions=[NaCl]"]
        sample(config(*csp, "num_samples=1101", "batch_size=20"))
    finally:
        tracemalloc.stop()
    assert live[1] - live[0] < 100_000  # what is said of 1,000 samples takes seven times that


@pytest.mark.slow
def test_the_command(checkpoints, tmp_path):
    def run(*overrides: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "src" / "sample_vae.py"), f"output={tmp_path}/out",
             "num_samples=20", "device=cpu", *overrides],
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
            env={**os.environ, "COLUMNS": "120", "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip

    dng, csp = (f"ckpt_path={checkpoints}/{name}.ckpt" for name in ("dng", "csp"))
    done = run(dng, "format=zip")
    assert done.returncode == 0, done.stderr
    assert "Wrote 20 samples to" in done.stdout + done.stderr
    with zipfile.ZipFile(tmp_path / "out" / "cifs.zip") as archive:
        assert len(archive.namelist()) == 20
        assert read_cif(archive.read("sample-000019.cif").decode()).num_atoms in (2, 6)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    listed = run(csp, "compositions=NaCl,SrTiO3", "overwrite=true")
    assert listed.returncode == 0, listed.stderr
    assert (tmp_path / "out" / "samples.json").read_text().count('"Na1 Cl1"') == 10
    for overrides, message in (
        ([dng], "exists"),
        ([csp, "overwrite=true"], "set compositions"),
        (["ckpt_path=nowhere.ckpt"], "there is no checkpoint"),
    ):
        done = run(*overrides)
        assert done.returncode == 1
        said = done.stdout + done.stderr
        assert message in said
        assert "Traceback" not in said
    done = run(csp, "compositions=[NaCl,4*SrTiO3]", "overwrite=true")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "cifs").is_dir()
