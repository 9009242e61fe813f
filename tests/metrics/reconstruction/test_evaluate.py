"""Evaluate fake VAEs whose results are known."""

import math

import pytest
import torch
from pymatgen.core import Lattice, Structure

from src.data.schema import CrystalBatch
from src.metrics.matching import CDVAE, PYMATGEN, MatcherPool, PairResult
from src.metrics.reconstruction.evaluate import (
    SETTINGS,
    evaluate_reconstruction,
    match_batches,
    reconstruct_batches,
    reconstruction_figures,
    to_structures,
)


class FakeVAE(torch.nn.Module):
    """Reconstructs each batch exactly, then changes it by `spoil`."""

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


SODIUM = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
CHLORINE = [[0.5, 0.5, 0.5], [0, 0, 0.5], [0, 0.5, 0], [0.5, 0, 0]]


def rocksalts(*lengths: float) -> CrystalBatch:
    elements = ["Na"] * 4 + ["Cl"] * 4
    return CrystalBatch.from_structures(
        [Structure(Lattice.cubic(a), elements, SODIUM + CHLORINE) for a in lengths]
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
            "volume_mape": 0.0,
        },
        abs=1e-6,
    )


def test_one_displaced_atom(pool):
    """One of two atoms is moved by 0.8 Å; the matcher attributes half of it to a common shift."""
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
def test_reconstructions_that_are_not_crystals(batches, pool, spoil):
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
    for results in match_batches(targets, predictions, pool):
        assert [result.status for result in results] == ["matched", "error", "matched"]
        assert [result.matched for result in results] == [True, False, True]
        assert results[0].rms == pytest.approx(0, abs=1e-6)
        assert results[1].rms is None
    (first, second, third) = to_structures(predictions[0])
    assert second is None
    assert (first.volume, third.volume) == (pytest.approx(5.5**3), pytest.approx(5.7**3))


@pytest.mark.parametrize("field", ["frac_coords", "lattices"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_number_affects_only_its_crystal(field, value):
    batch = rocksalts(5.5, 5.6, 5.7)
    for i in range(3):
        values = getattr(batch, field).clone()
        values[i if field == "lattices" else batch.ptr[i + 1] - 1, 1] = value
        structures = to_structures(batch.replace(**{field: values}))
        assert [structure is None for structure in structures] == [i == 0, i == 1, i == 2]


def test_results_keep_the_order_of_settings_and_pairs(pool):
    """An atom of CsCl is moved by three fractions of the free length."""
    cscl = Structure(Lattice.cubic(4.0), ["Cs", "Cl"], [[0.0] * 3, [0.5] * 3])
    free_length = 4.0 / 2 ** (1 / 3)
    targets, predictions = [], []
    for share in (0.1, 0.62, 0.3):  # the matcher attributes half of it to a common shift
        moved = cscl.copy()
        moved.translate_sites([0], [share * free_length, 0, 0], frac_coords=False)
        targets.append(CrystalBatch.from_structures([cscl]))
        predictions.append(CrystalBatch.from_structures([moved]))
    cdvae, default = match_batches(targets, predictions, pool, (CDVAE, PYMATGEN))
    assert [r.rms for r in cdvae] == pytest.approx([0.05, 0.31, 0.15], rel=1e-4)
    assert [r.matched for r in default] == [True, False, True]
    assert match_batches(targets, predictions, pool) == [cdvae, default]
    (alone,) = match_batches(targets, predictions, pool, [PYMATGEN])
    assert alone == default


def test_figures_of_results_by_hand(batches):
    """Of three pairs, one times out with one matcher and none match with the other."""
    assert SETTINGS == (CDVAE, PYMATGEN)
    cdvae = [PairResult("matched", 0.2), PairResult("matched", 0.1), PairResult("timeout")]
    default = [PairResult("timeout"), PairResult("error"), PairResult("unmatched")]
    figures = reconstruction_figures(batches, batches, [cdvae, default])
    assert figures["match_rate"] == pytest.approx(2 / 3)
    assert figures["rmse"] == pytest.approx(0.15)
    assert figures["crmse"] == pytest.approx((0.2 + 0.1 + 0.5) / 3)
    assert figures["match_rate_default"] == 0
    assert math.isnan(figures["rmse_default"])
    assert figures["crmse_default"] == pytest.approx(0.3)
    assert figures["match_timeouts"] == 2
    assert figures["atom_type_accuracy"] == 1


@pytest.mark.parametrize("training", [True, False])
def test_the_model_runs_in_evaluation_mode_and_its_mode_is_restored(batches, training):
    vae = FakeVAE().train(training)
    targets, predictions = reconstruct_batches(vae, iter(batches))
    assert vae.modes == [(False, False)] * 2
    assert vae.training is training
    assert [len(batch.num_atoms) for batch in targets] == [2, 1]
    assert [len(batch.num_atoms) for batch in predictions] == [2, 1]


def test_the_mode_is_restored_after_an_error(batches):
    def fail(batch):
        raise RuntimeError("out of memory")

    vae = FakeVAE(fail).train()
    with pytest.raises(RuntimeError, match="out of memory"):
        reconstruct_batches(vae, batches)
    assert vae.training
