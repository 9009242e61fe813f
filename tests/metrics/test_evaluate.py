"""The evaluation of a VAE, with fakes whose result is known."""

import math

import pytest
import torch
from pymatgen.core import Lattice, Structure

from src.data.schema import CrystalBatch
from src.metrics.evaluate import evaluate_reconstruction, match_batches, reconstruct_batches
from src.metrics.matching import CDVAE, PYMATGEN, MatcherPool


class FakeVAE(torch.nn.Module):
    """Gives back each batch, changed by `spoil`."""

    device = torch.device("cpu")

    def __init__(self, spoil=lambda batch: batch) -> None:
        super().__init__()
        self.spoil = spoil
        self.modes: list[tuple[bool, bool]] = []

    def encode(self, batch):
        self.modes.append((self.training, torch.is_grad_enabled()))
        return {"x": batch}

    def decode(self, encoded):
        return {"crystals": encoded["x"]}

    def reconstruct(self, decoded, batch):
        return self.spoil(decoded["crystals"])


def rocksalts(*lengths: float) -> CrystalBatch:
    return CrystalBatch.from_structures(
        [
            Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), ["Na", "Cl"], [[0] * 3, [0.5] * 3])
            for a in lengths
        ]
    )


@pytest.fixture
def batches():
    return [rocksalts(5.5, 5.6), rocksalts(5.7)]


@pytest.fixture
def pool():
    with MatcherPool(num_workers=0) as pool:
        yield pool


def test_a_perfect_vae(batches, pool):
    figures = evaluate_reconstruction(FakeVAE(), batches, pool)
    assert figures == pytest.approx(
        {
            "match_rate": 1.0,
            "rmse": 0.0,
            "crmse": 0.0,
            "match_rate_default": 1.0,
            "rmse_default": 0.0,
            "crmse_default": 0.0,
            "match_timeouts": 0,
            "atom_type_accuracy": 1.0,
            "frac_coords_rmse": 0.0,
            "coords_rmsd": 0.0,
            "lengths_mae": 0.0,
            "angles_mae": 0.0,
        },
        abs=1e-6,
    )


def test_one_displaced_atom(pool):
    """One of two atoms moved by 0.8 Å, of which the matcher takes half for a shift of both."""
    cscl = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0.0] * 3, [0.5] * 3])

    def move(batch):
        return batch.replace(
            frac_coords=batch.frac_coords + torch.tensor([[0.8 / 4.1, 0, 0], [0, 0, 0]])
        )

    figures = evaluate_reconstruction(FakeVAE(move), [CrystalBatch.from_structures([cscl])], pool)
    assert figures["coords_rmsd"] == pytest.approx(0.8 / math.sqrt(2), rel=1e-4)
    free_length = 4.1 / 2 ** (1 / 3)
    assert figures["match_rate"] == figures["match_rate_default"] == 1.0
    assert figures["rmse"] == pytest.approx(0.4 / free_length, rel=1e-4)
    assert figures["crmse"] == figures["rmse"]


def test_the_wrong_elements(batches, pool):
    vae = FakeVAE(lambda batch: batch.replace(atom_types=torch.full_like(batch.atom_types, 11)))
    figures = evaluate_reconstruction(vae, batches, pool)
    assert (figures["match_rate"], figures["crmse"], figures["crmse_default"]) == (0, 0.5, 0.3)
    assert math.isnan(figures["rmse"])
    assert figures["atom_type_accuracy"] == 0.5


def nan_coords(batch):
    return batch.replace(frac_coords=torch.full_like(batch.frac_coords, math.nan))


def nan_lattices(batch):
    return batch.replace(lattices=torch.full_like(batch.lattices, math.nan))


def infinities(batch):
    lattices = batch.lattices.clone()
    lattices[:, 0, 0], lattices[:, 1, 1] = math.inf, -math.inf
    return batch.replace(lattices=lattices)


def flat_cells(batch):
    return batch.replace(lattices=torch.zeros_like(batch.lattices))


def huge_cells(batch):
    return batch.replace(lattices=batch.lattices * 1e30)


@pytest.mark.parametrize("spoil", [nan_coords, nan_lattices, infinities, flat_cells, huge_cells])
def test_numbers_that_make_no_crystal(batches, pool, spoil):
    figures = evaluate_reconstruction(FakeVAE(spoil), batches, pool)
    assert (figures["match_rate"], figures["match_rate_default"]) == (0.0, 0.0)
    assert (figures["crmse"], figures["crmse_default"]) == (0.5, 0.3)
    assert math.isnan(figures["rmse"])
    assert figures["atom_type_accuracy"] == 1.0


def test_one_bad_crystal_does_not_spoil_the_others(pool):
    def spoil(batch):
        coords = batch.frac_coords.clone()
        coords[9, 2] = math.nan  # the second atom of the second crystal
        return batch.replace(frac_coords=coords)

    targets, predictions = reconstruct_batches(FakeVAE(spoil), [rocksalts(5.5, 5.6, 5.7)])
    cdvae, default = match_batches(targets, predictions, pool, (CDVAE, PYMATGEN))
    assert cdvae.match_rate == default.match_rate == pytest.approx(2 / 3)
    assert (cdvae.num_pairs, cdvae.num_errors, cdvae.rmse) == (3, 1, pytest.approx(0, abs=1e-6))


@pytest.mark.parametrize("training", [True, False])
def test_it_runs_in_evaluation_mode_and_restores_the_mode(batches, training):
    vae = FakeVAE().train(training)
    targets, predictions = reconstruct_batches(vae, iter(batches))
    assert vae.modes == [(False, False)] * 2
    assert vae.training is training
    assert [len(batch.num_atoms) for batch in targets] == [2, 1]
    assert [len(batch.num_atoms) for batch in predictions] == [2, 1]


def test_an_error_restores_the_mode_too(batches):
    def fail(batch):
        raise RuntimeError("out of memory")

    vae = FakeVAE(fail).train()
    with pytest.raises(RuntimeError, match="out of memory"):
        reconstruct_batches(vae, batches)
    assert vae.training
