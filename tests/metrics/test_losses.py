"""Check that average loss terms do not depend on how crystals are batched and distributed."""

import pytest
import torch

from src.data.dataset import CrystalDataset
from src.metrics.losses import LossAverages


@pytest.fixture
def dataset() -> CrystalDataset:
    num_atoms = torch.tensor([3, 1, 4, 1, 5])
    return CrystalDataset(
        torch.ones(14, dtype=torch.uint8),
        torch.rand(14, 3),
        torch.eye(3).repeat(5, 1, 1),
        num_atoms,
    )


PER_ATOM = torch.arange(14.0)  # in the order of the crystals
PER_CRYSTAL = torch.tensor([2.0, 3.0, 5.0, 7.0, 11.0])


def terms(batch, indices) -> dict[str, torch.Tensor]:
    """Means over a batch, scaled as `vae_loss` scales them."""
    starts = torch.tensor([0, 3, 4, 8, 9])
    counts = torch.tensor([3, 1, 4, 1, 5])
    atoms = torch.cat([PER_ATOM[starts[i] : starts[i] + counts[i]] for i in indices])
    crystals = PER_CRYSTAL[indices]
    return {
        "kl": atoms.sum() / batch.part.mean_num_atoms,
        "angles": crystals.sum() / batch.part.mean_num_crystals,
    }


@pytest.mark.parametrize("batches", [[[0, 1, 2, 3, 4]], [[0], [1, 2], [3, 4]], [[4, 0], [2, 1, 3]]])
def test_batching_makes_no_difference(dataset, batches):
    averages = LossAverages(["kl", "angles"], ["angles"])
    for indices in batches:
        batch = dataset.batch(torch.tensor(indices))
        averages.update(terms(batch, torch.tensor(indices)), batch)
    figures = averages.compute()
    assert figures["kl"] == pytest.approx(6.5)  # mean of 0 to 13
    assert figures["angles"] == pytest.approx(5.6)


def test_sharing_a_batch_makes_no_difference(dataset):
    averages = LossAverages(["kl", "angles"], ["angles"])
    whole = torch.tensor([4, 2, 0])
    for rank in range(2):
        batch = dataset.part(whole, rank, 2)
        averages.update(terms(batch, whole.tensor_split(2)[rank]), batch)
    figures = averages.compute()
    atoms = [9, 10, 11, 12, 13, 4, 5, 6, 7, 0, 1, 2]
    assert figures["kl"] == pytest.approx(sum(atoms) / 12)
    assert figures["angles"] == pytest.approx((11 + 5 + 2) / 3)
