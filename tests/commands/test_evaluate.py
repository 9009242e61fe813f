"""The evaluation of a checkpoint: the function, with fakes of known metrics, and the command."""

import io
import json
import logging
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import ase.io
import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from pymatgen.core import Lattice, Structure
from rich.console import Console
from safetensors.torch import load_file

from src.commands import evaluate as module
from src.commands.evaluate import (
    Evaluation,
    evaluate,
    evaluate_vae,
    evaluation_table,
    write_evaluation,
)
from src.data import CrystalBatch, DataError, DataModule
from src.data.dataset import CrystalDataset
from src.metrics.matching import FastMatcher, MatcherPool, PairResult
from src.metrics.reconstruction import tables
from src.metrics.reconstruction.invariance import TRANSFORMATIONS
from src.metrics.structure_matching import crystals as crystals_module
from src.nn.transformer import segment_mean
from src.utils.checkpoints import CheckpointError, save_checkpoint
from src.utils.output import OutputError
from src.vae_module import VAEModule
from src.vae_module.decoders.transformer import TransformerDecoder
from src.vae_module.encoders.transformer import TransformerEncoder
from src.vae_module.evaluation import NOISE_ERRORS

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"d_model": 16, "nhead": 2, "num_layers": 1, "dim_feedforward": 16}
LEVELS = (0, 0.05, 0.1, 0.2, 0.5, 1.0)
EXTXYZ = ("original.extxyz", "reconstruction.extxyz")


# Models whose reconstructions are known


class FakeVAE(torch.nn.Module):
    """Its latents are the crystals themselves; reconstructions are changed by `spoil`.

    The latent of an atom contains its fractional coordinates, atomic number and the lattice matrix.
    """

    device = torch.device("cpu")
    latent_dim = 13
    training_set = None

    def __init__(self, spoil=lambda batch: batch, logvar: float = -30.0) -> None:
        super().__init__()
        self.spoil = spoil
        self.logvar = logvar
        self.decoded: list[torch.Tensor] = []

    def encode(self, batch):
        cells = batch.lattices.flatten(1)[batch.batch]
        mean = torch.cat([batch.frac_coords, batch.atom_types[:, None], cells], dim=1)
        return {"posterior": SimpleNamespace(mean=mean, logvar=torch.full_like(mean, self.logvar))}

    def decode(self, encoded):
        assert {"x", "num_atoms", "batch", "atom_types"} <= set(encoded)
        self.decoded.append(encoded["x"])
        return encoded

    def reconstruct(self, decoded, batch):
        x = decoded["x"]
        cells = segment_mean(x[:, 4:], decoded["batch"], decoded["num_atoms"])
        types = x[:, 3].round().long().clamp(1, 99)
        types[(x[:, 3] - types).abs() > 1e-3] = 1  # a type is right or it is hydrogen
        return self.spoil(batch.replace(types, x[:, :3], cells.view(-1, 3, 3)))


class Echo(FakeVAE):
    """Returns the right crystals, whatever the latents are."""

    def reconstruct(self, decoded, batch):
        return batch


def make_vae(seed: int = 0) -> VAEModule:
    torch.manual_seed(seed)
    decoder = TransformerDecoder(**SIZES)
    return VAEModule(TransformerEncoder(**SIZES), decoder, latent_dim=4).eval()


# Crystals


def fcc(a: float) -> Lattice:
    return Lattice(a / 2 * (1 - np.eye(3)))


CORNER, CENTRE = [0, 0, 0], [0.5, 0.5, 0.5]
ROCKSALT, CSCL = fcc(5.6), Lattice.cubic(3.5)  # two forms of NaCl
STRUCTURES = [
    Structure(ROCKSALT, ["Na", "Cl"], [CORNER, CENTRE]),
    Structure(CSCL, ["Na", "Cl"], [CORNER, CENTRE]),
    Structure(fcc(4.2), ["Mg", "O"], [CORNER, CENTRE]),
    Structure(
        Lattice.cubic(3.9),
        ["Sr", "Ti", "O", "O", "O"],
        [CORNER, CENTRE, [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
    ),
]
IDS = ["rocksalt", "cscl", "periclase", "perovskite"]


def make_dataset(structures=STRUCTURES, ids=None) -> CrystalDataset:
    ids = (IDS if structures is STRUCTURES else None) if ids is None else ids
    return CrystalDataset.from_batch(CrystalBatch.from_structures(structures), ids)


def known_defects(batch: CrystalBatch) -> CrystalBatch:
    """Swap the cells of the two NaCl structures, and turn one oxygen into fluorine."""
    lattices, types = batch.lattices.clone(), batch.atom_types.clone()
    for k, start in enumerate(batch.ptr[:-1]):
        if types[start] == 11:
            other = CSCL if lattices[k].det().abs() > 43.4 else ROCKSALT
            lattices[k] = torch.tensor(other.matrix)
    for start, n in zip(batch.ptr[:-1], batch.num_atoms, strict=True):
        if n == 5:
            types[start + 2] = 9
    return batch.replace(types, lattices=lattices)


@pytest.fixture
def pool():
    with FastMatcher() as pool:
        yield pool


def flat(value, prefix: str = "") -> dict[str, float]:
    """Nested metrics by their paths."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return {prefix: math.nan if value is None else value}
    return {k: v for key, item in items for k, v in flat(item, f"{prefix}/{key}").items()}


def assert_same(a: Evaluation, b: Evaluation) -> None:
    """Equal apart from rounding, which depends on the order of summation."""
    found, expected = flat(a.metrics), flat(b.metrics)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-4, abs=1e-4, nan_ok=True), key
    pd.testing.assert_frame_equal(a.crystals, b.crystals, rtol=1e-4, atol=1e-4)
    for one, other in ((a.originals, b.originals), (a.reconstructions, b.reconstructions)):
        assert torch.equal(one.atom_types, other.atom_types)
        torch.testing.assert_close(one.frac_coords, other.frac_coords, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(a.pooled, b.pooled, rtol=1e-4, atol=1e-4)


# A perfect model


@pytest.fixture(scope="module")
def perfect() -> Evaluation:
    with FastMatcher() as pool:
        return evaluate_vae(FakeVAE(), make_dataset(), pool, batch_size=3, noise_levels=LEVELS)


def test_a_perfect_model_has_perfect_figures(perfect):
    for figures in (perfect.metrics, perfect.metrics["sampled"]):
        for name in ("match_rate", "match_rate_default", "atom_type_accuracy"):
            assert figures[name] == 1.0, name
        for name in ("rmse", "crmse", "rmse_default", "crmse_default", "match_timeouts",
                     "frac_coords_rmse", "coords_rmsd", "lengths_mae", "angles_mae",
                     "volume_mape"):  # fmt: skip
            assert figures[name] == pytest.approx(0, abs=1e-4), name
    metrics = perfect.metrics
    assert (metrics["metre"], metrics["metre_default"]) == (1, 1)
    assert metrics["crystals_evaluated"] == 4
    assert metrics["gated"] == {
        "match_rate": 1, "match_rate_default": 1, "valid": 1, "valid_originals": 1,
        "valid_structure": 1, "valid_composition": 1,
    }  # fmt: skip
    assert metrics["space_group"] == {
        "symprec": 0.1, "crystals": 4, "kept": 1, "lost": 0, "gained": 0, "changed": 0,
    }  # fmt: skip
    assert [row["match_rate"] for row in metrics["by_num_atoms"]] == [1, 1]
    assert {row["match_rate"] for row in metrics["by_element"].values()} == {1}


def test_its_latents_are_described(perfect):
    """FakeVAE's means are the crystals themselves."""
    latent = perfect.metrics["latent"]
    types = [11, 17, 11, 17, 12, 8, 38, 22, 8, 8, 8]
    assert latent["mean"][3] == pytest.approx(np.mean(types))
    assert latent["std"][3] == pytest.approx(np.std(types))
    assert latent["posterior_std"] == pytest.approx([math.exp(-15)] * 13)
    assert latent["active_units"] == 13
    kl = (np.mean(np.square(types)) + math.exp(-30) - 1 + 30) / 2
    assert latent["kl_per_channel"][3] == pytest.approx(kl)
    pooled = torch.tensor([14.0, 14, 10, 84 / 5])
    torch.testing.assert_close(perfect.pooled[:, 3], pooled)
    assert perfect.pooled.shape == (4, 13)


def test_noise_on_latents_has_a_known_area(perfect):
    """Any noise turns all atoms into hydrogen, so the curve falls from 1 at 0 to 0 at 0.05."""
    noise = perfect.metrics["noise"]
    assert noise["levels"] == list(LEVELS)
    for suffix in ("", "_default", "_unreduced"):
        assert noise[f"match_rate{suffix}"] == [1, 0, 0, 0, 0, 0]
        assert noise[f"area{suffix}"] == pytest.approx(0.05 / 2)
    assert noise["crystals"] == 4
    assert noise["atom_type_accuracy"][0] == 1
    assert max(noise["atom_type_accuracy"][1:]) < 1
    assert noise["coords_median"][0] == pytest.approx(0, abs=1e-4)
    assert all(len(noise[name]) == len(LEVELS) for name in NOISE_ERRORS)


def test_a_decoder_that_noise_cannot_mislead(pool):
    metrics = evaluate_vae(Echo(), make_dataset(), pool, noise_levels=(0, 0.5, 2)).metrics
    assert metrics["noise"]["match_rate"] == [1, 1, 1]
    assert metrics["noise"]["area"] == metrics["noise"]["area_default"] == 1


def test_a_perfect_model_sees_no_difference_between_ways_to_write_a_crystal(perfect):
    assert list(perfect.metrics["symmetry"]) == list(TRANSFORMATIONS)
    for name, figures in perfect.metrics["symmetry"].items():
        assert figures["coords_rmsd"] == pytest.approx(0, abs=1e-5), name
        assert figures["lengths_mae"] == pytest.approx(0, abs=1e-5), name
        assert figures["angles_mae"] == pytest.approx(0, abs=1e-3), name
        assert (figures["atom_type_accuracy"], figures["match_rate"]) == (1, 1), name


def test_the_noise_is_in_units_of_each_channel_and_the_same_draw_at_every_level(pool):
    vae = FakeVAE()
    dataset = make_dataset(STRUCTURES * 6)
    evaluate_vae(vae, dataset, pool, batch_size=999, noise_levels=(0, 0.1, 0.4))
    # decoded: means, a sample, three levels, four transformations
    assert len(vae.decoded) == 9
    clean, low, high = vae.decoded[2:5]
    assert torch.equal(clean, vae.decoded[0])
    torch.testing.assert_close((high - clean) / 4, low - clean, rtol=1e-3, atol=1e-4)
    units = (high - clean) / (0.4 * clean.std(0))
    assert units.square().mean(0).sqrt().numpy() == pytest.approx(1, abs=0.4)  # of 66 atoms each
    assert units.square().mean().sqrt() == pytest.approx(1, abs=0.1)


# Known defects: one crystal of four is right


@pytest.fixture(scope="module")
def defective() -> Evaluation:
    with FastMatcher() as pool:
        return evaluate_vae(
            FakeVAE(known_defects), make_dataset(), pool, noise_levels=(), num_probed=0
        )


def test_a_crystal_that_another_one_became_counts_for_metre_alone(defective):
    metrics = defective.metrics
    assert metrics["match_rate"] == metrics["match_rate_default"] == 1 / 4
    assert metrics["metre"] == metrics["metre_default"] == 3 / 4
    assert metrics["rmse"] == pytest.approx(0, abs=1e-5)
    assert metrics["crmse"] == pytest.approx(0.5 * 3 / 4, abs=1e-5)
    assert metrics["crmse_default"] == pytest.approx(0.3 * 3 / 4, abs=1e-5)
    assert metrics["atom_type_accuracy"] == pytest.approx(10 / 11)
    assert metrics["sampled"]["match_rate"] == 1 / 4


ROCKSALT_VOLUME, CSCL_VOLUME = 5.6**3 / 4, 3.5**3
LENGTH = 5.6 / math.sqrt(2) - 3.5  # the difference of the two cells' vectors
VOLUME_ERRORS = [
    1 - CSCL_VOLUME / ROCKSALT_VOLUME, ROCKSALT_VOLUME / CSCL_VOLUME - 1, 0, 0,
]  # fmt: skip


def test_errors_of_the_cell_are_known(defective):
    metrics, crystals = defective.metrics, defective.crystals
    assert metrics["lengths_mae"] == pytest.approx(LENGTH / 2, rel=1e-5)
    assert metrics["angles_mae"] == pytest.approx(30 / 2, rel=1e-5)
    assert metrics["volume_mape"] == pytest.approx(np.mean(VOLUME_ERRORS), rel=1e-4)
    assert crystals["lengths_error"].tolist() == pytest.approx([LENGTH, LENGTH, 0, 0], abs=1e-5)
    assert crystals["angles_error"].tolist() == pytest.approx([30, 30, 0, 0], abs=1e-4)
    assert crystals["volume_error"].tolist() == pytest.approx(VOLUME_ERRORS, abs=1e-5)


def test_a_row_for_each_crystal(defective):
    crystals = defective.crystals
    assert crystals["id"].tolist() == IDS
    assert crystals["formula"].tolist() == ["NaCl", "NaCl", "MgO", "SrTiO3"]
    assert crystals["num_atoms"].tolist() == [2, 2, 2, 5]
    for suffix in ("", "_default"):
        assert crystals[f"matched{suffix}"].tolist() == [False, False, True, False]
        assert crystals[f"status{suffix}"].tolist() == ["unmatched"] * 2 + ["matched", "unmatched"]
        assert crystals[f"rms{suffix}"].isna().tolist() == [True, True, False, True]
    assert crystals["atom_types_right"].tolist() == pytest.approx([1, 1, 1, 0.8])
    assert crystals["coords_rmsd"].tolist() == pytest.approx([0] * 4, abs=1e-5)
    assert crystals["valid"].tolist() == [True] * 4
    assert crystals["reason"].tolist() == [
        "no match within the tolerances", "no match within the tolerances", "",
        "20% of the atom types are wrong",
    ]  # fmt: skip


def test_space_groups_that_change_are_told_from_those_that_are_lost(defective):
    """Fm-3m and Pm-3m with two atoms have equally many operations; SrTiO2F is tetragonal."""
    crystals = defective.crystals
    assert crystals["spacegroup"].tolist() == [225, 221, 225, 221]
    assert crystals["spacegroup_reconstructed"].tolist() == [221, 225, 225, 123]
    figures = defective.metrics["space_group"]
    assert (figures["kept"], figures["lost"], figures["changed"], figures["gained"]) == (
        1 / 4, 1 / 4, 1 / 2, 0,
    )  # fmt: skip


def test_the_table_by_number_of_atoms(defective):
    two, five = defective.metrics["by_num_atoms"]
    assert (two["num_atoms"], two["crystals"]) == (2, 3)
    assert (five["num_atoms"], five["crystals"]) == (5, 1)
    assert (two["match_rate"], two["match_rate_default"]) == (1 / 3, 1 / 3)
    assert (five["match_rate"], five["match_rate_default"]) == (0, 0)
    assert (two["atom_type_accuracy"], five["atom_type_accuracy"]) == (1, pytest.approx(0.8))
    assert two["lengths_mae"] == pytest.approx(2 * LENGTH / 3, rel=1e-5)
    assert two["angles_mae"] == pytest.approx(20, rel=1e-5)
    assert two["volume_mape"] == pytest.approx(sum(VOLUME_ERRORS) / 3, rel=1e-4)
    assert (five["lengths_mae"], five["volume_mape"]) == (0, 0)
    assert two["rmse"] == pytest.approx(0, abs=1e-5)
    assert math.isnan(five["rmse"])
    assert (two["crmse"], two["crmse_default"]) == pytest.approx(
        (0.5 * 2 / 3, 0.3 * 2 / 3), abs=1e-5
    )
    assert (five["crmse"], five["crmse_default"]) == (0.5, 0.3)
    assert (two["space_group_kept"], five["space_group_kept"]) == (1 / 3, 0)
    assert (two["valid"], two["match_rate_gated"]) == (1, 1 / 3)
    assert two["match_rate_sampled"] == 1 / 3


def test_the_table_by_element(defective):
    rows = defective.metrics["by_element"]
    assert list(rows) == ["O", "Na", "Mg", "Cl", "Ti", "Sr"]
    assert [row["atoms"] for row in rows.values()] == [4, 2, 1, 2, 1, 1]
    assert [row["crystals"] for row in rows.values()] == [2, 2, 1, 2, 1, 1]
    assert [row["atom_type_accuracy"] for row in rows.values()] == [3 / 4, 1, 1, 1, 1, 1]
    for name in ("match_rate", "match_rate_default"):
        assert [row[name] for row in rows.values()] == [1 / 2, 0, 1, 0, 0, 0]
    assert rows["O"]["taken_for"] == {"F": 1}
    assert rows["Na"]["taken_for"] == {}


def test_crystals_that_are_rare_in_training_are_told_from_the_others(defective, pool):
    """Titanium is rare, strontium was never seen; two atoms per crystal are rare, five are not."""
    assert defective.metrics["rare"] is None  # nobody knows what it was trained on
    vae = FakeVAE(known_defects)
    vae.training_set = {
        "elements": {"8": 500, "11": 300, "12": 100, "17": 60, "22": 40},
        "num_atoms": {"5": 96, "2": 3, "3": 2},  # with the three there would be more than 5 %
    }
    rare = evaluate_vae(vae, make_dataset(), pool, noise_levels=(), num_probed=0).metrics["rare"]
    assert rare["elements"]["crystals"] == 1
    assert rare["elements"]["match_rate"] == 0  # SrTiO3 came back with a fluorine
    assert rare["sizes"]["crystals"] == 3
    assert rare["sizes"]["match_rate"] == rare["sizes"]["match_rate_default"] == 1 / 3
    vae.training_set["num_atoms"] = {"5": 90, "2": 10}
    rare = evaluate_vae(vae, make_dataset(), pool, noise_levels=(), num_probed=0).metrics["rare"]
    assert rare["sizes"]["crystals"] == 0
    assert math.isnan(rare["sizes"]["match_rate"])


def test_distances_of_atoms_by_crystal_and_by_number_of_atoms(pool):
    """MgO with its oxygen displaced by 0.3 Å, two NaCl with chlorine displaced by 0.1 Å each."""
    structures = [STRUCTURES[2], STRUCTURES[1], STRUCTURES[1], STRUCTURES[3]]

    def displace(batch):
        cart = torch.zeros(len(batch.batch), 3)
        cart[1, 0], cart[3, 1], cart[5, 2] = 0.3, 0.1, -0.1
        inverse = batch.lattices.inverse()[batch.batch]
        moved = batch.frac_coords + (cart[:, None] @ inverse)[:, 0]
        return batch.replace(frac_coords=moved - moved.floor())

    found = evaluate_vae(FakeVAE(displace), make_dataset(structures), pool, num_probed=0)
    rmsd = [0.3 / math.sqrt(2), 0.1 / math.sqrt(2), 0.1 / math.sqrt(2), 0]
    assert found.crystals["coords_rmsd"].tolist() == pytest.approx(rmsd, abs=1e-5)
    squares = 0.3**2 + 0.1**2 + 0.1**2
    two, five = found.metrics["by_num_atoms"]
    assert two["coords_rmsd"] == pytest.approx(math.sqrt(squares / 6), rel=1e-4)
    assert five["coords_rmsd"] == pytest.approx(0, abs=1e-5)
    assert found.metrics["coords_rmsd"] == pytest.approx(math.sqrt(squares / 11), rel=1e-4)
    assert found.metrics["match_rate"] == 1
    assert found.crystals["reason"].tolist() == [""] * 4


def test_a_match_that_is_not_valid_is_gated(pool):
    """CsO2 comes back as it is, and SMACT finds no oxidation states that balance."""
    corners = [CORNER, CENTRE, [0.5, 0.5, 0]]
    dioxide = Structure(Lattice.cubic(5), ["Cs", "O", "O"], corners)
    found = evaluate_vae(FakeVAE(), make_dataset([*STRUCTURES, dioxide]), pool, num_probed=0)
    assert found.metrics["match_rate"] == 1
    assert found.metrics["gated"] == {
        "match_rate": 0.8, "match_rate_default": 0.8, "valid": 0.8, "valid_originals": 0.8,
        "valid_structure": 1, "valid_composition": 0.8,
    }  # fmt: skip


def test_a_symmetry_that_is_put_in_is_gained(pool):
    distorted = STRUCTURES[1].copy()
    distorted.translate_sites([1], [0.2, 0, 0], frac_coords=False)

    def snap(batch):
        return batch.replace(frac_coords=(2 * batch.frac_coords).round() / 2)

    structures = [distorted, STRUCTURES[1]]
    found = evaluate_vae(FakeVAE(snap), make_dataset(structures), pool, num_probed=0)
    assert found.crystals["spacegroup"].tolist() == [99, 221]
    figures = found.metrics["space_group"]
    assert (figures["gained"], figures["kept"], figures["lost"]) == (1 / 2, 1 / 2, 0)


def test_the_sample_is_drawn_from_the_posterior(pool):
    """With a wide posterior, the mean is reconstructed correctly and a sample is not."""
    vae = FakeVAE(logvar=2 * math.log(5))
    runs = [evaluate_vae(vae, make_dataset(), pool, num_probed=0, seed=seed) for seed in (0, 0, 1)]
    mean, sample = vae.decoded[:2]
    assert (sample - mean).square().mean().sqrt() == pytest.approx(5, rel=0.1)  # of 11 x 13
    assert runs[0].metrics["match_rate"] == 1
    assert runs[0].metrics["sampled"]["match_rate"] == 0
    assert runs[0].metrics["sampled"]["atom_type_accuracy"] < 0.2
    lengths = [run.metrics["sampled"]["lengths_mae"] for run in runs]
    assert lengths[0] == lengths[1] != lengths[2]
    deviation = runs[0].metrics["latent"]["posterior_std"]
    assert deviation == pytest.approx([5] * 13)


# What depends on how a crystal is written


def first_atom_displaced(batch: CrystalBatch) -> CrystalBatch:
    """Mimic a model that sees the order of atoms: move the first by 0.4 Å along x (cubic cells)."""
    coords = batch.frac_coords.clone()
    coords[batch.ptr[:-1], 0] += 0.4 / batch.lengths[:, 0]
    return batch.replace(frac_coords=coords - coords.floor())


def test_a_model_that_sees_the_order_of_atoms_is_found_out(pool):
    """A different one of five atoms is displaced then, so two atoms differ by 0.4 Å."""
    vae, dataset = FakeVAE(first_atom_displaced), make_dataset([STRUCTURES[3]])
    found = evaluate_vae(vae, dataset, pool, noise_levels=(), seed=1)  # which moves the first atom
    symmetry = found.metrics["symmetry"]
    assert symmetry["permutation"]["coords_rmsd"] == pytest.approx(0.4 * math.sqrt(2 / 5), rel=1e-4)
    for name in ("translation", "rotation"):
        assert symmetry[name]["coords_rmsd"] == pytest.approx(0, abs=1e-5)
    assert symmetry["permutation"]["atom_type_accuracy"] == 1
    assert "noise" not in found.metrics


def test_a_model_that_chooses_its_own_origin_still_matches(pool):
    def first_atom_to_origin(batch):
        origin = batch.frac_coords[batch.ptr[:-1]][batch.batch]
        moved = batch.frac_coords - origin
        return batch.replace(frac_coords=moved - moved.floor())

    vae = FakeVAE(first_atom_to_origin)
    found = evaluate_vae(vae, make_dataset([STRUCTURES[3]]), pool, noise_levels=())
    symmetry = found.metrics["symmetry"]["translation"]
    assert symmetry["coords_rmsd"] > 0.5
    assert symmetry["match_rate"] == 1


# Numbers that make no crystal


def nan_coords(batch):
    return batch.replace(frac_coords=torch.full_like(batch.frac_coords, math.nan))


def nan_lattices(batch):
    return batch.replace(lattices=torch.full_like(batch.lattices, math.nan))


def infinite_lattices(batch):
    return batch.replace(lattices=torch.full_like(batch.lattices, math.inf))


def flat_cells(batch):
    return batch.replace(lattices=torch.zeros_like(batch.lattices))


@pytest.mark.parametrize("spoil", [nan_coords, nan_lattices, infinite_lattices, flat_cells])
def test_a_model_that_makes_no_crystals(pool, tmp_path, spoil):
    found = evaluate_vae(FakeVAE(spoil), make_dataset(), pool, noise_levels=(0, 1))
    write_evaluation(found, tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    for name in ("match_rate", "match_rate_default", "metre", "metre_default"):
        assert metrics[name] == 0, name
    assert (metrics["crmse"], metrics["crmse_default"], metrics["rmse"]) == (0.5, 0.3, None)
    assert metrics["gated"]["match_rate"] == metrics["gated"]["valid"] == 0
    assert metrics["space_group"]["lost"] == 1
    errors = {name: metrics["noise"].pop(name) for name in NOISE_ERRORS}
    assert all(len(values) == 2 for values in errors.values())
    assert metrics["noise"] == {
        "crystals": 4, "levels": [0, 1], "match_rate": [0, 0], "match_rate_default": [0, 0],
        "match_rate_unreduced": [0, 0], "area": 0, "area_default": 0, "area_unreduced": 0,
    }  # fmt: skip
    assert [row["match_rate"] for row in metrics["by_num_atoms"]] == [0, 0]
    assert [row["rmse"] for row in metrics["by_num_atoms"]] == [None, None]

    table = pd.read_csv(tmp_path / "per_crystal.csv")
    assert not table["matched"].any()
    assert (table["status"] == "error").all()
    assert table["reason"].str.startswith("error: ").all()
    assert table["rms"].isna().all()
    for name in EXTXYZ:
        frames = ase.io.read(tmp_path / name, ":")
        assert [atoms.info["id"] for atoms in frames] == IDS
        assert all(np.isfinite(atoms.positions).all() for atoms in frames)
        assert all(np.isfinite(atoms.cell.array).all() for atoms in frames)
    console = Console(file=io.StringIO(), width=100)
    console.print(evaluation_table({**metrics, "split": "test", "matcher": "fast"}))
    assert "nan" not in console.file.getvalue()


def test_one_bad_crystal_leaves_the_others(pool, tmp_path):
    def spoil(batch):
        coords = batch.frac_coords.clone()
        coords[batch.ptr[2], 1] = math.nan
        return batch.replace(frac_coords=coords)

    found = evaluate_vae(FakeVAE(spoil), make_dataset(), pool, num_probed=0)
    assert found.metrics["match_rate"] == found.metrics["metre"] == 3 / 4
    assert found.crystals["status"].tolist() == ["matched"] * 2 + ["error", "matched"]
    assert found.crystals["coords_rmsd"].isna().tolist() == [False, False, True, False]
    write_evaluation(found, tmp_path)
    good = [ase.io.read(tmp_path / name, 3) for name in EXTXYZ]
    np.testing.assert_allclose(good[0].positions, good[1].positions, atol=1e-5)


def test_latents_that_are_nan(pool, tmp_path):
    class NaN(FakeVAE):
        def encode(self, batch):
            posterior = super().encode(batch)["posterior"]
            posterior.mean *= math.nan
            return {"posterior": posterior}

        def reconstruct(self, decoded, batch):
            return nan_coords(batch)

    found = evaluate_vae(NaN(), make_dataset(), pool, noise_levels=(0, 1))
    write_evaluation(found, tmp_path)
    latent = json.loads((tmp_path / "metrics.json").read_text())["latent"]
    assert latent["active_units"] == 0
    assert latent["mean"] == latent["kl_per_channel"] == [None] * 13


def test_a_timeout_is_a_failure_that_is_counted():
    class Slow(FastMatcher):
        def match(self, targets, predictions, settings, **options):
            several = super().match(targets, predictions, settings, **options)
            if isinstance(settings, tuple):
                several[0][0] = PairResult("timeout", message="no result within 10 s")
            return several

    found = evaluate_vae(FakeVAE(), make_dataset(), Slow(num_workers=0), num_probed=0)
    assert (found.metrics["match_timeouts"], found.metrics["match_rate"]) == (1, 3 / 4)
    assert found.crystals["reason"][0] == "timeout: no result within 10 s"
    assert found.crystals["status"][0] == "timeout"


# What must not matter, and what one can choose


@pytest.mark.parametrize("kind", ["defective", "real"])
def test_the_result_does_not_depend_on_the_size_of_batches(pool, kind):
    vae = FakeVAE(known_defects) if kind == "defective" else make_vae()
    runs = [
        evaluate_vae(vae, make_dataset(), pool, batch_size, (0, 0.1, 1), num_probed=3)
        for batch_size in (3, 64)
    ]
    assert_same(*runs)


def test_the_result_does_not_depend_on_the_matcher_and_its_processes(defective):
    with MatcherPool(num_workers=2) as pool:
        found = evaluate_vae(
            FakeVAE(known_defects), make_dataset(), pool, noise_levels=(), num_probed=0
        )
    assert_same(found, defective)


def test_a_seed_decides_and_the_global_one_does_not_matter(pool):
    def run(seed: int, state: int) -> Evaluation:
        torch.manual_seed(state)
        return evaluate_vae(make_vae(), make_dataset(), pool, 64, (0, 1), num_probed=2, seed=seed)

    first = run(0, 1)
    assert_same(first, run(0, 2))
    other = run(1, 1)
    assert first.metrics["sampled"]["lengths_mae"] != other.metrics["sampled"]["lengths_mae"]


def test_originals_are_reduced_once(pool, monkeypatch):
    """Not again for the sample, each level of noise and each symmetry."""
    counted = []
    reduce = crystals_module.niggli_cells
    monkeypatch.setattr(
        crystals_module, "niggli_cells", lambda cells: counted.append(len(cells)) or reduce(cells)
    )
    evaluate_vae(FakeVAE(), make_dataset(), pool, noise_levels=(0, 0.1))
    # Four originals; their reconstructions, samples, two levels and four transformations. With the
    # wrong elements, some of these are not looked at.
    assert 4 + 4 * 7 <= sum(counted) <= 4 + 4 * 8


def test_metre_is_left_out_where_it_takes_too_long(pool, monkeypatch, caplog):
    """Two crystals that did not match, each with two reconstructions of its composition."""
    dataset = make_dataset()
    for limit, metre in ((1, 3 / 4), (0.9, None)):
        monkeypatch.setitem(tables.MAX_METRE_PAIRS, "fast", limit)
        found = evaluate_vae(FakeVAE(known_defects), dataset, pool, num_probed=0)
        assert (found.metrics["metre"], found.metrics["metre_default"]) == (metre, metre)
    assert "metre is left out: it would take 4 more comparisons" in caplog.text
    monkeypatch.setitem(tables.MAX_METRE_PAIRS, "fast", 0)
    assert evaluate_vae(FakeVAE(), dataset, pool, num_probed=0).metrics["metre"] == 1


@pytest.mark.parametrize("levels", [(0.1, 0.2), (0, 0.2, 0.1), (0, 0.1, 0.1)])
def test_levels_of_noise_that_make_no_curve(pool, levels):
    with pytest.raises(ValueError, match="noise_levels must ascend from 0"):
        evaluate_vae(FakeVAE(), make_dataset(), pool, noise_levels=levels)


def test_the_curves_can_be_left_out(pool):
    found = evaluate_vae(FakeVAE(), make_dataset(), pool, num_probed=0).metrics
    assert not {"noise", "symmetry"} & set(found)
    found = evaluate_vae(FakeVAE(), make_dataset(), pool, noise_levels=(0,), num_probed=2).metrics
    assert "noise" not in found
    assert found["symmetry"]["cell"]["crystals"] == 2


def test_the_mode_of_the_model_is_put_back_and_nothing_is_changed(pool):
    vae, dataset = make_vae().train(), make_dataset()
    before = [t.clone() for t in (dataset.frac_coords, dataset.lattices, dataset.atom_types)]
    evaluate_vae(vae, dataset, pool, noise_levels=(0, 1))
    assert vae.training
    after = (dataset.frac_coords, dataset.lattices, dataset.atom_types)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# From a checkpoint to a folder


NUM = 12


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """A few of the included crystals, with a property that one of them lacks."""
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "val", "test"):
        table = pd.read_csv(ROOT / "data" / "prototypes" / f"{split}.csv", nrows=NUM)
        table["gap"] = np.where(np.arange(NUM) == 3, np.nan, np.arange(NUM) / 2)
        table.to_csv(folder / f"{split}.csv", index=False)
    return folder


@pytest.fixture
def run_dir(data_dir, tmp_path) -> Path:
    """A run folder with an untrained model."""
    folder = tmp_path / "run"
    save_checkpoint(make_vae(), folder / "checkpoints" / "best.ckpt")
    data = {
        "_target_": "src.data.DataModule", "data_dir": str(data_dir), "properties": ["gap"],
        "eval_batch_size": 5, "cache_dir": str(data_dir / "cache"),
    }  # fmt: skip
    OmegaConf.save({"data": data, "seed": 0}, folder / "config.yaml")
    (folder / "metrics.csv").write_text("epoch,step,train/loss\n0,1,2.5\n")
    return folder


@pytest.fixture
def make_config(run_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("PROJECT_ROOT", str(tmp_path))

    def make(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            return compose(
                "eval_vae",
                overrides=[
                    f"ckpt_path={run_dir}/checkpoints/best.ckpt", "device=cpu", "num_workers=0",
                    "report=false", *overrides,
                ],
            )  # fmt: skip

    return make


def content(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_an_evaluation_is_written_whole_and_consistent(make_config, run_dir, data_dir, caplog):
    with caplog.at_level(logging.INFO):
        metrics = evaluate(make_config("num_probed=5", "noise_levels=[0,0.5]"))
    folder = run_dir / "eval_test"
    assert str(folder) in caplog.text
    assert content(run_dir) == {"checkpoints", "config.yaml", "metrics.csv", "eval_test"}
    assert content(folder) == {
        "metrics.json", "per_crystal.csv", *EXTXYZ, "latents.safetensors", "training.csv",
    }  # fmt: skip

    written = json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert written == metrics
    assert {
        "match_rate", "rmse", "crmse", "match_rate_default", "rmse_default", "crmse_default",
        "match_timeouts", "atom_type_accuracy", "frac_coords_rmse", "coords_rmsd", "lengths_mae",
        "angles_mae", "crystals_evaluated", "metre", "metre_default", "volume_mape",
        "split", "checkpoint", "data_dir",
    } <= {key for key, value in metrics.items() if not isinstance(value, (dict, list))}  # fmt: skip
    assert {
        "sampled", "gated", "by_num_atoms", "by_element", "rare", "space_group", "latent", "noise",
        "symmetry",
    } <= set(metrics)  # fmt: skip
    assert (metrics["split"], metrics["data_dir"]) == ("test", str(data_dir))
    assert metrics["checkpoint"].endswith("best.ckpt")
    assert metrics["crystals_evaluated"] == NUM
    assert metrics["noise"]["crystals"] == metrics["symmetry"]["cell"]["crystals"] == 5

    source = pd.read_csv(data_dir / "test.csv", dtype={"material_id": str})
    table = pd.read_csv(folder / "per_crystal.csv", dtype={"id": str})
    assert list(table.columns) == [
        "id", "formula", "num_atoms", "matched", "rms", "status", "matched_sampled",
        "matched_default", "rms_default", "status_default", "matched_sampled_default",
        "atom_types_right", "coords_rmsd", "lengths_error", "angles_error", "volume_error",
        "spacegroup", "spacegroup_reconstructed", "space_group_change", "valid_structure",
        "valid_composition", "valid", "valid_original", "reason", "gap",
    ]  # fmt: skip
    assert table["id"].tolist() == source["material_id"].tolist()
    np.testing.assert_allclose(table["gap"], source["gap"])
    assert table["matched"].mean() == metrics["match_rate"]
    assert table["lengths_error"].mean() == pytest.approx(metrics["lengths_mae"], rel=1e-4)
    assert sum(row["crystals"] for row in metrics["by_num_atoms"]) == NUM
    atoms = sum(row["atoms"] for row in metrics["by_element"].values())
    assert atoms == table["num_atoms"].sum()
    right = (table["atom_types_right"] * table["num_atoms"]).sum() / atoms
    assert right == pytest.approx(metrics["atom_type_accuracy"], rel=1e-4)
    assert set(metrics["noise"]) >= {"levels", "match_rate", "match_rate_default", "area"}

    dataset = DataModule(data_dir, cache_dir=data_dir / "cache").dataset("test")
    true = dataset.batch(torch.arange(NUM)).to_atoms()
    for name in EXTXYZ:
        frames = ase.io.read(folder / name, ":")
        assert [str(frame.info["id"]) for frame in frames] == table["id"].tolist()
        assert [len(frame) for frame in frames] == table["num_atoms"].tolist()
        assert all(frame.pbc.all() for frame in frames)
    for expected, frame in zip(true, ase.io.read(folder / "original.extxyz", ":"), strict=True):
        assert expected.numbers.tolist() == frame.numbers.tolist()
        np.testing.assert_allclose(frame.positions, expected.positions, atol=1e-5)
        np.testing.assert_allclose(frame.cell.array, expected.cell.array, atol=1e-5)

    pooled = load_file(folder / "latents.safetensors")["pooled"]
    first = make_vae().encode(dataset.batch(torch.tensor([0])))["posterior"].mean.mean(0)
    assert pooled.shape == (NUM, 4)
    torch.testing.assert_close(pooled[0], first, rtol=1e-4, atol=1e-5)
    assert (folder / "training.csv").read_text() == (run_dir / "metrics.csv").read_text()
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert len(modes) == 1  # none for its owner alone


def test_the_split_the_place_and_the_number_can_be_chosen(make_config, run_dir, tmp_path):
    quick = ["num_crystals=3", "num_probed=0"]
    metrics = evaluate(make_config("split=val", f"output_dir={tmp_path}/elsewhere", *quick))
    assert (metrics["split"], metrics["crystals_evaluated"]) == ("val", 3)
    assert len(pd.read_csv(tmp_path / "elsewhere" / "per_crystal.csv")) == 3
    assert "eval_val" not in content(run_dir)
    assert evaluate(make_config("num_crystals=1000", "num_probed=0"))["crystals_evaluated"] == NUM


def test_an_evaluation_is_replaced_only_when_asked(make_config, run_dir):
    quick = ["num_probed=0", "num_crystals=2"]
    evaluate(make_config(*quick, "seed=1"))
    folder = run_dir / "eval_test"
    with pytest.raises(OutputError, match=r"eval_test exists.*overwrite=true"):
        evaluate(make_config(*quick))
    assert json.loads((folder / "metrics.json").read_text())["seed"] == 1
    evaluate(make_config(*quick, "seed=2", "overwrite=true"))
    assert json.loads((folder / "metrics.json").read_text())["seed"] == 2
    (folder / "metrics.json").unlink()
    with pytest.raises(OutputError, match=r"no metrics\.json"):
        evaluate(make_config(*quick, "overwrite=true"))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_evaluation_that_was_there(make_config, run_dir, monkeypatch, error):
    quick = ["num_probed=0", "num_crystals=2"]
    evaluate(make_config(*quick))
    before = (run_dir / "eval_test" / "metrics.json").read_bytes()

    def fail(evaluation: Evaluation, folder: Path) -> None:
        write_evaluation(evaluation, folder)
        raise error

    monkeypatch.setattr(module, "write_evaluation", fail)
    with pytest.raises(error):
        evaluate(make_config(*quick, "overwrite=true"))
    assert (run_dir / "eval_test" / "metrics.json").read_bytes() == before
    with pytest.raises(error):
        evaluate(make_config(*quick, "split=val"))
    assert content(run_dir) == {"checkpoints", "config.yaml", "metrics.csv", "eval_test"}


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["ckpt_path=nowhere.ckpt"], FileNotFoundError, r"no checkpoint nowhere\.ckpt"),
        (["split=holdout"], DataError, "no split 'holdout'"),
        (["data.data_dir=nowhere"], DataError, "There is no folder nowhere"),
        (["noise_levels=[0.1,0.2]"], ValueError, "noise_levels must ascend from 0"),
        (["num_crystals=0"], ValueError, "num_crystals must be at least 1"),
        (["num_probed=-1"], ValueError, "num_probed must be at least 0"),
    ],
)
def test_input_that_cannot_be_used_leaves_nothing_behind(
    make_config, run_dir, overrides, error, message
):
    with pytest.raises(error, match=message):
        evaluate(make_config(*overrides))
    assert content(run_dir) == {"checkpoints", "config.yaml", "metrics.csv"}


def test_a_truncated_checkpoint(make_config, run_dir):
    path = run_dir / "checkpoints" / "best.ckpt"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"best\.ckpt is damaged"):
        evaluate(make_config())
    assert content(run_dir) == {"checkpoints", "config.yaml", "metrics.csv"}


# The command, with a model that has learned something


@pytest.mark.slow
def test_the_command(trained_run, tmp_path):
    checkpoint = trained_run / "checkpoints" / "best.ckpt"

    def run(*overrides: str) -> tuple[int, str]:
        command = [sys.executable, str(ROOT / "src" / "eval_vae.py"), "num_workers=2", *overrides]
        environment = {**os.environ, "PYTHONWARNINGS": "ignore", "COLUMNS": "120"}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=580
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    folder = tmp_path / "found"
    given = [f"ckpt_path={checkpoint}", f"output_dir={folder}"]
    code, said = run(*given, "num_crystals=300", "num_probed=100")
    assert code == 0, said
    assert "300 crystals of test" in said
    assert content(tmp_path) == {"found"}
    assert {"report.html", "figures"} <= content(folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 0.5 < metrics["match_rate"] <= metrics["metre"] <= 1
    assert metrics["gated"]["match_rate"] <= metrics["match_rate"]
    rates = metrics["noise"]["match_rate"]
    assert rates[0] > rates[-1] + 0.2
    assert rates[-1] <= metrics["noise"]["area"] <= rates[0]
    assert metrics["latent"]["active_units"] >= 3
    symmetry = metrics["symmetry"]
    for name in ("rotation", "permutation"):  # which the model cannot see
        assert symmetry[name]["coords_rmsd"] < 0.01
        assert symmetry[name]["atom_type_accuracy"] > 0.999
    assert len(pd.read_csv(folder / "per_crystal.csv")) == 300
    assert len(pd.read_csv(folder / "training.csv")) > 5

    code, said = run(*given)
    assert (code, "found exists" in said, "Traceback" in said) == (1, True, False)
    shutil.rmtree(folder)
    code, said = run("ckpt_path=nowhere.ckpt")
    assert (code, "no checkpoint nowhere.ckpt" in said, "Traceback" in said) == (1, True, False)
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(checkpoint.read_bytes()[:5000])
    code, said = run(f"ckpt_path={broken}")
    assert (code, "broken.ckpt is damaged" in said, "Traceback" in said) == (1, True, False)
    code, said = run()
    assert (code, "ckpt_path" in said, "Traceback" in said) == (1, True, False)
    assert content(tmp_path) == {"broken.ckpt"}
