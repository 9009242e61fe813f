from itertools import chain

import pytest
import torch

from src.data.dataset import CrystalDataset
from src.data.loader import CrystalLoader, EpochSampler
from src.utils.errors import UserError


def make_dataset(num: int) -> CrystalDataset:
    """Crystal i has 1 + i % 4 atoms and the property i."""
    num_atoms = torch.arange(num) % 4 + 1
    total = int(num_atoms.sum())
    return CrystalDataset(
        torch.randint(1, 90, (total,), generator=torch.Generator().manual_seed(0)),
        torch.rand(total, 3, generator=torch.Generator().manual_seed(0)),
        torch.eye(3).expand(num, 3, 3),
        num_atoms,
        y={"index": torch.arange(num).float()},
    )


def make_loader(num=23, batch_size=5, shuffle=True, **sampler) -> CrystalLoader:
    return CrystalLoader(make_dataset(num), EpochSampler(num, batch_size, shuffle, **sampler))


def taken(batches) -> list[list[int]]:
    return [batch.y["index"].int().tolist() for batch in batches]


def epoch_of(loader: CrystalLoader, epoch: int) -> list[list[int]]:
    loader.sampler.set_epoch(epoch)
    return taken(loader)


@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_every_crystal_once_per_epoch(batch_size):
    loader = make_loader(batch_size=batch_size)
    for epoch in range(3):
        batches = epoch_of(loader, epoch)
        assert sorted(chain(*batches)) == list(range(23))
        assert len(batches) == len(loader) == -(-23 // batch_size)
        assert [len(b) for b in batches[:-1]] == [batch_size] * (len(batches) - 1)


def test_the_order_depends_only_on_seed_and_epoch():
    loader = make_loader(seed=1)
    orders = [epoch_of(loader, epoch) for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]
    torch.manual_seed(99)
    other = make_loader(seed=1)
    assert epoch_of(other, 2) == orders[2]  # without the earlier epochs
    assert epoch_of(other, 0) == orders[0]
    assert epoch_of(make_loader(seed=2), 0) != orders[0]
    # seed 0 in epoch 1 differs from seed 1 in epoch 0
    assert epoch_of(make_loader(seed=0), 1) != orders[0]


def test_without_shuffling_the_order_is_that_of_the_data_set():
    loader = make_loader(num=7, batch_size=3, shuffle=False)
    assert epoch_of(loader, 0) == epoch_of(loader, 5) == [[0, 1, 2], [3, 4, 5], [6]]


def test_batches_contain_the_right_crystals():
    loader = make_loader()
    dataset = loader.dataset
    for batch in loader:
        for i, index in enumerate(batch.y["index"].int().tolist()):
            assert torch.equal(batch[i].frac_coords, dataset[index].frac_coords)
            assert batch.num_atoms[i] == index % 4 + 1


@pytest.mark.parametrize("num", [20, 23, 24, 25, 27])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_each_batch(num, world_size):
    """In each step, the ranks together take what one process with the total batch size takes."""
    alone = make_loader(num, 4 * world_size, seed=3)
    ranks = [make_loader(num, 4, seed=3, rank=r, world_size=world_size) for r in range(world_size)]
    for epoch in range(2):
        steps = list(zip(*(epoch_of(rank, epoch) for rank in ranks), strict=True))
        whole = epoch_of(alone, epoch)
        # the last batch is dropped if a rank would get no crystal
        assert len(steps) == len(whole) - (0 < num % (4 * world_size) < world_size)
        assert [list(chain(*step)) for step in steps] == whole[: len(steps)]
        sizes = [[len(part) for part in step] for step in steps]
        assert all(min(size) >= 1 and max(size) - min(size) <= 1 for size in sizes)
        assert {len(rank) for rank in ranks} == {len(steps)}


def test_resumes_with_the_remaining_batches():
    whole = epoch_of(make_loader(seed=4), 2)
    for done in range(len(whole) + 1):
        loader = make_loader(seed=4)
        loader.sampler.set_epoch(2)
        iterator = iter(loader)
        assert taken(next(iterator) for _ in range(done)) == whole[:done]
        state = loader.state_dict()

        resumed = make_loader(seed=4)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert epoch_of(resumed, 2) == whole[done:]
        assert epoch_of(resumed, 2) == whole  # only once
        assert epoch_of(resumed, 3) == epoch_of(make_loader(seed=4), 3)


def test_a_resumed_epoch_can_be_interrupted_again():
    whole = epoch_of(make_loader(), 0)
    state = {"epoch": 0, "taken": 1}
    for done in (2, 3, 4):
        loader = make_loader()
        loader.load_state_dict(state)
        assert taken([next(iter(loader))]) == [whole[done - 1]]
        state = loader.state_dict()
        assert state == {"epoch": 0, "taken": done}


def test_another_epoch_starts_from_its_beginning():
    loader = make_loader()
    loader.load_state_dict({"epoch": 0, "taken": 3})
    assert epoch_of(loader, 1) == epoch_of(make_loader(), 1)


def test_a_state_saved_between_two_epochs():
    """A checkpoint at the start of an epoch, before its first batch, must not skip the epoch."""
    loader = make_loader()
    epoch_of(loader, 0)
    loader.sampler.set_epoch(1)
    resumed = make_loader()
    resumed.load_state_dict(loader.state_dict())
    assert epoch_of(resumed, 1) == epoch_of(loader, 1)


def test_an_abandoned_iteration_has_no_effect():
    loader = make_loader()
    whole = epoch_of(make_loader(), 0)
    iterator = iter(loader)
    next(iterator), next(iterator)
    del iterator
    assert taken(loader) == whole
    next(iter(loader))
    assert loader.state_dict() == {"epoch": 0, "taken": 1}


def test_the_batch_size_must_be_positive():
    with pytest.raises(UserError, match="batch_size must be at least 1, not 0"):
        EpochSampler(10, 0, shuffle=False)
