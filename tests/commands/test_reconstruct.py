"""From crystals to their reconstructions, as a function and as a command."""

import errno
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import ase.io
import numpy as np
import pandas as pd
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from hydra import compose, initialize_config_dir
from pymatgen.core import Lattice, Structure

import src.commands.reconstruct
from src.commands.reconstruct import reconstruct
from src.data import CrystalBatch
from src.data.cell_change import change_cell
from src.data.cells import CELLS as CELL_CHOICES
from src.data.cells import SYMPREC, choose_cell
from src.data.cif import niggli_reduce, read_cif
from src.data.parsing import ReadOptions
from src.data.structures import read_structures, to_crystal, to_structure, write_structures
from src.utils.checkpoints import CheckpointError, save_checkpoint
from src.utils.geometry import parameters_to_lattices
from src.utils.output import OutputError
from src.vae_module import VAEModule
from src.vae_module.decoders.transformer import TransformerDecoder
from src.vae_module.encoders.transformer import TransformerEncoder
from src.vae_module.reconstruction import reconstruct_structures

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"d_model": 16, "nhead": 2, "num_layers": 1, "dim_feedforward": 16}
SKEWED = np.array([[3.0, 0, 0], [4.1, 4.2, 0], [-5.2, 2.5, 6.1]])


def make_vae(atom_type_predict: bool = True, max_num_elements: int = 100) -> VAEModule:
    """An untrained VAE whose cells are roughly cubes of 3 Å per atom."""
    torch.manual_seed(0)
    vae = VAEModule(
        TransformerEncoder(**SIZES, max_num_elements=max_num_elements),
        TransformerDecoder(
            **SIZES, max_num_elements=max_num_elements, atom_type_predict=atom_type_predict
        ),
        latent_dim=4,
    )
    with torch.no_grad():
        vae.decoder.lattice_head.weight *= 0.1
        vae.decoder.lattice_head.bias.copy_(torch.tensor([3.0] * 3 + [math.pi / 2] * 3))
    return vae.eval()


def make_perfect_vae() -> VAEModule:
    """A VAE that returns its input, apart from the orientation, and records it in `shown`."""
    vae = make_vae()
    vae.shown = []

    def encode(batch):
        vae.shown.append(batch)
        return {"batch": batch, "posterior": SimpleNamespace(mean=None, std=None)}

    def reconstruct(encoded, _):
        batch = encoded["batch"]
        return batch.replace(lattices=parameters_to_lattices(batch.lengths, batch.angles))

    vae.encode, vae.decode, vae.reconstruct = encode, lambda encoded: encoded, reconstruct
    return vae


def make_structure(lattice=SKEWED, n: int = 5) -> Structure:
    coords = np.random.default_rng(n).random((n, 3))
    return Structure(Lattice(lattice), (["O", "Ti", "Sr"] * n)[:n], coords)


def positions_close(one: Structure, other: Structure) -> bool:
    offset = one.frac_coords - other.frac_coords
    return np.allclose(offset, np.rint(offset), atol=1e-5)


# In Python


ROTATION = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
# The model sees lengths and angles alone, which a left-handed cell shares with its mirror image: a
# crystal that was mirrored on the way could not be laid over the given one.
CELLS = [SKEWED, SKEWED @ ROTATION, SKEWED * [1, 1, -1], np.eye(3)[[1, 0, 2]] * 4, np.eye(3) * 4]


@pytest.mark.parametrize("niggli", [True, False])
@pytest.mark.parametrize("lattice", CELLS)
def test_cell_orientation_and_order_are_those_that_were_given(lattice, niggli):
    vae, given = make_perfect_vae(), make_structure(lattice)
    before = given.copy()
    (back,) = reconstruct_structures(vae, [given], niggli=niggli)
    assert isinstance(back, Structure)
    np.testing.assert_allclose(back.lattice.matrix, given.lattice.matrix, atol=1e-4)
    assert positions_close(back, given)
    assert back.species == given.species
    assert given == before
    shown = vae.shown[0]
    assert torch.linalg.det(shown.lattices[0]) > 0
    if niggli:
        reduced = niggli_reduce(to_crystal(given)).lattice
        np.testing.assert_allclose(shown.lattices[0].numpy(), reduced, atol=1e-4)


def others(crystal: Structure) -> list[Structure]:
    """The same crystal in other cells: smaller and larger ones, left-handed, in another order."""
    primitive = crystal.get_primitive_structure()
    skewed = crystal.copy().make_supercell([[1, 2, 0], [0, 1, 0], [1, 0, 2]])
    order = np.random.default_rng(0).permutation(len(crystal))
    shuffled = Structure.from_sites([crystal[int(i)] for i in order])
    mirror = np.eye(3)[[1, 0, 2]]
    swapped = Structure(
        mirror @ crystal.lattice.matrix @ ROTATION, crystal.species, crystal.frac_coords @ mirror
    )
    return [crystal, primitive, skewed, shuffled, swapped]


@pytest.mark.parametrize("cell", CELL_CHOICES)
def test_whatever_cell_the_model_sees_the_given_one_comes_back(cell):
    rutile = Structure.from_spacegroup(
        "P4_2/mnm", Lattice.tetragonal(4.6, 2.95), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
    )
    spinel = Structure.from_spacegroup(
        "Fd-3m", Lattice.cubic(8.1), ["Mg", "Al", "O"],
        [[0.125] * 3, [0.5] * 3, [0.2624] * 3],
    )  # fmt: skip
    given = [*others(rutile), *others(spinel), *others(make_structure())]
    vae = make_perfect_vae()
    vae.read_options = asdict(ReadOptions(cell))
    back = reconstruct_structures(vae, given)
    for one, other in zip(back, given, strict=True):
        np.testing.assert_allclose(one.lattice.matrix, other.lattice.matrix, atol=1e-4)
        assert one.species == other.species
        assert positions_close(one, other)
    seen = [len(crystal) for batch in vae.shown for crystal in batch.to_structure()]
    expected = [choose_cell(to_crystal(structure), cell).num_atoms for structure in given]
    assert sorted(seen) == sorted(expected)
    assert reconstruct_structures(make_perfect_vae(), given, cell=cell) == back


@pytest.mark.parametrize("cell", CELL_CHOICES)
@pytest.mark.parametrize("name", ["mp_20", "perov_5", "carbon_24"])
def test_real_crystals_come_back_in_their_cells(shared_data, name, cell):
    texts = pd.read_csv(shared_data / name / "test.csv.gz", nrows=25)["cif"]
    given = [to_structure(read_cif(text, niggli=False)) for text in texts]
    vae = make_perfect_vae()
    vae.read_options = asdict(ReadOptions(cell))
    back = reconstruct_structures(vae, given)
    exact = 0
    for one, other in zip(back, given, strict=True):
        np.testing.assert_allclose(one.lattice.matrix, other.lattice.matrix, atol=1e-4)
        assert one.species == other.species
        offsets = one.frac_coords - other.frac_coords
        vectors = (offsets - np.rint(offsets)) @ other.lattice.matrix
        # in a smaller cell, spglib makes one atom of those that are equivalent within SYMPREC
        assert np.linalg.norm(vectors, axis=1).max() < SYMPREC
        exact += np.abs(vectors).max() < 1e-5
    assert exact == 25 or (exact > 15 and cell in ("primitive", "conventional"))


def test_a_cell_and_its_older_name():
    vae, given = make_perfect_vae(), make_structure()
    vae.read_options = asdict(ReadOptions("as_given"))
    shapes = []
    for options in ({}, {"niggli": False}, {"niggli": True}, {"cell": "niggli"}):
        reconstruct_structures(vae, [given], **options)
        shapes.append(vae.shown[-1].lengths[0].tolist())
    assert shapes[0] == shapes[1] == pytest.approx(list(given.lattice.abc), abs=1e-4)
    assert shapes[2] == shapes[3] != pytest.approx(list(given.lattice.abc), abs=1e-4)
    reconstruct_structures(vae, [given], niggli=True, cell="niggli")
    for options in ({"niggli": True, "cell": "primitive"}, {"niggli": False, "cell": "niggli"}):
        with pytest.raises(ValueError, match=r"niggli=(True|False) means cell=.*set only cell"):
            reconstruct_structures(vae, [given], **options)
    with pytest.raises(ValueError, match="cell must be one of"):
        reconstruct_structures(vae, [given], cell="cubic")


def test_atoms_in_atoms_out():
    given = [bulk("NaCl", "rocksalt", a=5.64), bulk("Cu", "fcc", a=3.6)]
    before = [atoms.copy() for atoms in given]
    back = reconstruct_structures(make_perfect_vae(), given)
    assert [type(atoms) for atoms in back] == [Atoms, Atoms]
    assert back[0].numbers.tolist() == [11, 17]
    assert given == before
    np.testing.assert_allclose(back[0].cell.array, given[0].cell.array, atol=1e-5)
    assert reconstruct_structures(make_perfect_vae(), []) == []


@pytest.mark.parametrize("sampled", [False, True])
def test_batches_do_not_matter(sampled):
    vae = make_vae()
    given = [make_structure(n=n) for n in (7, 2, 9, 1, 4)]
    one, other = (
        reconstruct_structures(vae, given, batch_size=size, sampled=sampled, seed=3)
        for size in (2, 100)
    )
    for a, b, original in zip(one, other, given, strict=True):
        assert len(a) == len(original)
        assert a.species == b.species
        assert positions_close(a, b)
        np.testing.assert_allclose(a.lattice.matrix, b.lattice.matrix, atol=1e-4)


def test_the_mean_is_the_models_and_a_sample_is_another():
    vae, given = make_vae(), make_structure(np.eye(3) * 6)
    (mean,) = reconstruct_structures(vae, [given])
    (drawn,) = reconstruct_structures(vae, [given], sampled=True)
    (again,) = reconstruct_structures(vae, [given], sampled=True)
    (other,) = reconstruct_structures(vae, [given], sampled=True, seed=1)
    batch = CrystalBatch.from_structures([given])
    with torch.no_grad():
        decoded = vae.decode(vae.encode(batch))
    assert mean.lattice.abc == pytest.approx(decoded["lengths"][0].tolist(), rel=1e-5)
    assert positions_close(drawn, again)
    assert not positions_close(drawn, mean)
    assert not positions_close(drawn, other)


def test_a_model_that_is_given_atom_types_keeps_them():
    given = make_structure(n=9)
    (back,) = reconstruct_structures(make_vae(atom_type_predict=False), [given])
    assert back.species == given.species


def test_what_the_model_cannot_take_is_named():
    good, half = make_structure(), make_structure()
    half.replace(0, {"O": 0.5})
    with pytest.raises(ValueError, match=r"structure 1: Sr has atomic number 38.* 1 to 19"):
        reconstruct_structures(make_vae(max_num_elements=20), [bulk("C"), good])
    with pytest.raises(ValueError, match="structure 1: partial occupancies"):
        reconstruct_structures(make_vae(), [good, half])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        reconstruct_structures(make_vae(), [good], batch_size=0)


def test_numbers_that_make_no_crystal_are_none():
    vae = make_vae()
    with torch.no_grad():
        vae.decoder.lattice_head.bias.fill_(math.nan)
    assert reconstruct_structures(vae, [make_structure()] * 2) == [None, None]


def test_large_crystals_are_warned_of(caplog):
    vae = make_vae()
    given = [make_structure(n=n) for n in (3, 30)]
    reconstruct_structures(vae, given)
    assert caplog.text == ""
    vae.training_set = {"num_crystals": 2, "num_atoms": {"5": 1, "20": 1}, "elements": {}}
    reconstruct_structures(vae, given)
    assert "1 of 2 crystals have more atoms (up to 30)" in caplog.text


# As a command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "vae.ckpt"
    save_checkpoint(make_vae(max_num_elements=60), path)
    return path


@pytest.fixture
def crystals(tmp_path) -> Path:
    """A folder of good files, one that cannot be read, and one with an element out of range."""
    folder = tmp_path / "crystals"
    write_structures(folder / "a.cif", [make_structure()], ["a"])
    write_structures(folder / "deep" / "POSCAR", [make_structure(n=3)], ["b"])
    frames = [make_structure(n=n) for n in (2, 4)]
    write_structures(folder / "deep" / "f.extxyz", frames, ["x", "y"])
    write_structures(folder / "s.json", frames[:1], ["s"])
    ase.io.write(folder / "t.traj", bulk("Fe"))
    ase.io.write(folder / "gold.cif", bulk("Au"))
    (folder / "notes.txt").write_text("hello")
    return folder


@pytest.fixture
def config(tmp_path, checkpoint, crystals):
    def make(*overrides: str):
        common = [f"ckpt_path={checkpoint}", f"input={crystals}", f"output={tmp_path}/out"]
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            return compose(
                "reconstruct", overrides=[*common, "device=cpu", "num_workers=0", *overrides]
            )

    return make


def test_files_come_out_as_they_went_in(config, crystals, tmp_path):
    counts = reconstruct(config())
    assert counts["crystals"] == 6
    assert counts["skipped"] == 2
    out = tmp_path / "out"
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files == {
        "a.cif", "deep/POSCAR", "deep/f.extxyz", "s.json", "t.traj.extxyz", "changes.csv",
        "skipped.csv",
    }  # fmt: skip
    originals = {item.id: item.structure for item in read_structures(crystals)[0]}
    vae = make_vae(max_num_elements=60)
    found, _ = read_structures(out)
    assert len(found) == 6
    for item in found:
        (expected,) = reconstruct_structures(vae, [originals[item.id]])
        assert item.structure.species == expected.species
        np.testing.assert_allclose(
            item.structure.lattice.parameters, expected.lattice.parameters, atol=1e-3
        )


def test_the_table_says_what_changed(config, crystals, tmp_path):
    counts = reconstruct(config())
    changes = pd.read_csv(tmp_path / "out" / "changes.csv").set_index("id")
    assert list(changes.index) == ["a", "deep/POSCAR", "x", "y", "s", "t"]
    assert counts["matched"] == changes.matched.sum()
    assert set(changes.status) <= {"matched", "unmatched"}
    assert (changes.rms.notna() == changes.matched).all()
    original = {i.id: i.structure for i in read_structures(crystals)[0]}["a"]
    (new,) = [i.structure for i in read_structures(tmp_path / "out" / "a.cif")[0]]
    row = changes.loc["a"]
    assert (row.file, row.num_atoms, row.formula) == ("a.cif", 5, original.formula)
    assert row.formula_reconstructed == new.formula
    assert row.a_change == pytest.approx(new.lattice.a - original.lattice.a, abs=1e-4)
    assert row.gamma_change == pytest.approx(new.lattice.gamma - original.lattice.gamma, abs=1e-3)
    assert row.volume_change == pytest.approx(new.volume / original.volume - 1, abs=1e-4)
    skipped = pd.read_csv(tmp_path / "out" / "skipped.csv").set_index("file").reason
    assert "Au has atomic number 79: the model knows elements 1 to 59" in skipped["gold.cif (gold)"]
    assert "not in a format that can be read" in skipped["notes.txt"]


def test_a_perfect_model_matches(config, monkeypatch, crystals, tmp_path):
    monkeypatch.setattr(src.commands.reconstruct, "load_vae", lambda _: make_perfect_vae())
    counts = reconstruct(config(f"input={crystals / 'deep'}"))
    assert counts == {"crystals": 3, "matched": 3, "matched_default": 3, "skipped": 0}
    changes = pd.read_csv(tmp_path / "out" / "changes.csv")
    assert list(changes.columns[:11]) == [
        "id", "file", "num_atoms", "formula", "formula_reconstructed", "matched", "rms", "status",
        "matched_default", "rms_default", "status_default",
    ]  # fmt: skip
    assert changes.rms.max() < 1e-4
    assert list(changes.columns[11:]) == [
        "matcher",
        *(f"{name}_change" for name in ("a", "b", "c", "alpha", "beta", "gamma", "volume")), "cell",
    ]  # fmt: skip
    assert np.abs(changes.loc[:, "a_change":"volume_change"].to_numpy()).max() < 1e-3
    assert list(changes.cell) == ["given"] * 3


@pytest.mark.parametrize("cell", CELL_CHOICES)
def test_the_command_uses_the_cell_of_training(
    config, monkeypatch, crystals, tmp_path, cell, caplog
):
    vae = make_perfect_vae()
    vae.read_options = asdict(ReadOptions(cell))
    monkeypatch.setattr(src.commands.reconstruct, "load_vae", lambda _: vae)
    rutile = Structure.from_spacegroup(
        "P4_2/mnm", Lattice.tetragonal(4.6, 2.95), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
    )
    write_structures(tmp_path / "double.cif", [rutile * (2, 1, 1)], ["double"])
    with caplog.at_level("INFO"):
        reconstruct(config(f"input={tmp_path}/double.cif"))
    assert "as in training" in caplog.text
    assert len(vae.shown[0].atom_types) == (6 if cell in ("primitive", "conventional") else 12)
    changes = pd.read_csv(tmp_path / "out" / "changes.csv")
    assert list(changes.cell) == ["given"]
    assert changes.num_atoms[0] == len(read_structures(tmp_path / "out")[0][0].structure) == 12
    assert np.abs(changes.loc[:, "a_change":"volume_change"].to_numpy()).max() < 1e-3

    other = "as_given" if cell == "niggli" else "niggli"
    override = f"niggli={str(other == 'niggli').lower()}"
    reconstruct(config(f"input={tmp_path}/double.cif", override, "overwrite=true"))
    assert "but the model was trained on" in caplog.text
    with pytest.raises(ValueError, match="set only cell"):
        reconstruct(config(override, "cell=primitive", "overwrite=true"))


def test_a_crystal_without_a_way_back_stays_in_the_cell_of_the_model(
    config, monkeypatch, tmp_path, caplog
):
    monkeypatch.setattr(src.commands.reconstruct, "load_vae", lambda _: make_perfect_vae())
    monkeypatch.setattr(
        "src.vae_module.input.change_cell", lambda *a: replace(change_cell(*a), atoms=None)
    )
    given = Structure(Lattice.orthorhombic(3, 4, 5), ["Ti", "O"], [[0, 0, 0], [0.5, 0.4, 0.3]])
    write_structures(tmp_path / "double.cif", [given * (2, 1, 1)], ["double"])
    counts = reconstruct(config(f"input={tmp_path}/double.cif", "cell=primitive"))
    assert counts["matched"] == 1
    assert "1 of 1 crystals cannot be converted back to the given cells" in caplog.text
    changes = pd.read_csv(tmp_path / "out" / "changes.csv")
    assert list(changes.cell) == ["primitive"]
    assert np.abs(changes.loc[:, "a_change":"volume_change"].to_numpy()).max() < 1e-3
    assert len(read_structures(tmp_path / "out")[0][0].structure) == 2


def test_results_are_replaced_only_when_asked(config, crystals, tmp_path):
    single = f"input={crystals / 'a.cif'}"
    reconstruct(config(single))
    with pytest.raises(OutputError, match="exists"):
        reconstruct(config(single))
    reconstruct(config(f"input={crystals / 'deep'}", "overwrite=true"))
    assert not (tmp_path / "out" / "a.cif").exists()
    assert (tmp_path / "out" / "POSCAR").exists()


def left_behind(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name != "crystals"]


def test_input_without_a_usable_crystal_leaves_nothing(config, crystals, tmp_path):
    for given, message in (
        (crystals / "notes.txt", "no crystal"),
        (crystals / "nothing", "there is no file"),
        (crystals / "gold.cif", "none of the crystals .*\n.*Au has atomic number 79"),
    ):
        with pytest.raises(ValueError, match=message):
            reconstruct(config(f"input={given}"))
    assert left_behind(tmp_path) == []


def test_a_full_disk_leaves_nothing(config, monkeypatch, tmp_path):
    def full(path, *_):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(src.commands.reconstruct, "write_structures", full)
    with pytest.raises(OSError, match="No space"):
        reconstruct(config())
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("content", ["text", "truncated", "other"])
def test_what_is_no_checkpoint(config, checkpoint, tmp_path, content):
    path = tmp_path / "bad.ckpt"
    if content == "other":
        torch.save({"state_dict": {"weight": torch.zeros(3)}, "hyper_parameters": {}}, path)
    else:
        path.write_bytes(b"hello" if content == "text" else checkpoint.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"bad\.ckpt"):
        reconstruct(config(f"ckpt_path={path}"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command(checkpoint, crystals, tmp_path):
    def run(*overrides: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "src" / "reconstruct.py"), f"ckpt_path={checkpoint}",
             f"output={tmp_path}/out", *overrides],
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
            env={**os.environ, "COLUMNS": "120", "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip

    done = run(f"input={crystals}")
    assert done.returncode == 0, done.stderr
    assert "Reconstruction minus original" in done.stdout
    assert "notes.txt" in done.stdout + done.stderr
    assert len(read_structures(tmp_path / "out")[0]) == 6
    assert {path.name for path in tmp_path.iterdir()} == {"crystals", "out"}
    for overrides, message in (
        ([f"input={crystals}"], "exists"),
        ([f"input={crystals}/notes.txt", "overwrite=true"], "no crystal"),
        (["input=nowhere", "ckpt_path=nowhere.ckpt"], "there is no checkpoint"),
    ):
        done = run(*overrides)
        assert done.returncode == 1
        said = done.stdout + done.stderr
        assert message in said
        assert "Traceback" not in said
    assert (tmp_path / "out" / "changes.csv").exists()
