"""The model of compositions: what it counts, its probabilities, and what can be asked of it."""

from itertools import product

import pytest
import torch

from src.data import CrystalBatch
from src.data.dataset import CrystalDataset
from src.ldm_module.composition_training import fit_compositions
from src.ldm_module.compositions import (
    MAX_ELEMENTS,
    CompositionModel,
    Compositions,
    order_of_elements,
)
from src.ldm_module.conditions import Conditions
from src.utils.errors import UserError

TINY = {"d_model": 8, "nhead": 2, "num_layers": 1, "dim_feedforward": 8, "dropout": 0.0}


def tiny(max_num_elements: int = 6, max_num_atoms: int = 8, **conditions) -> CompositionModel:
    torch.manual_seed(0)
    asked = Conditions(8, max_num_elements=max_num_elements, **conditions)
    return CompositionModel(
        **TINY, **sizes(max_num_elements, max_num_atoms), conditions=asked
    ).eval()


def sizes(max_num_elements: int, max_num_atoms: int) -> dict[str, int]:
    return {"max_num_elements": max_num_elements, "max_num_atoms": max_num_atoms}


def uniform(num: int) -> torch.Tensor:
    return torch.rand(num, MAX_ELEMENTS, 2, generator=torch.Generator().manual_seed(1))


def formulas(compositions: Compositions) -> list[dict[int, int]]:
    rows = zip(*(each.tolist() for each in compositions), strict=True)
    return [{z: n for z, n in zip(*row, strict=True) if z} for row in rows]


def test_order_of_elements():
    """Metals come before what they are bound to, and every element has its place."""
    order = order_of_elements(100).tolist()
    assert sorted(order) == list(range(100))
    place = {number: i for i, number in enumerate(order)}
    assert place[0] == 0
    assert place[55] < place[11] < place[22] < place[26] < place[16] < place[8] < place[17]


def test_compositions_of_crystals():
    types = [8, 8, 22, 38, 8, 11, 17]
    batch = CrystalBatch.for_sampling(torch.tensor([5, 2]), torch.tensor(types))
    found = Compositions.of(batch, 60)
    assert formulas(found) == [{38: 1, 22: 1, 8: 3}, {11: 1, 17: 1}]
    assert found.num_atoms.tolist() == [5, 2]
    assert found.atom_types().tolist() == [38, 22, 8, 8, 8, 11, 17]
    wider = Compositions(*(torch.nn.functional.pad(each, (0, 2)) for each in found))
    assert formulas(wider.trimmed()) == formulas(found)
    assert wider.trimmed().elements.shape == (2, 3)


def every_composition(num_elements: int, num_atoms: int) -> Compositions:
    """All of them, of the elements 1 to `num_elements`."""
    cells = [
        [z for z, n in enumerate(counts, 1) for _ in range(n)]
        for counts in product(range(num_atoms + 1), repeat=num_elements)
        if sum(counts) == num_atoms
    ]
    types = torch.tensor([z for cell in cells for z in cell])
    return Compositions.of(
        CrystalBatch.for_sampling(torch.full((len(cells),), num_atoms), types), num_elements + 1
    )


def test_probabilities_add_up_and_samples_follow_them():
    model = tiny(5, 6)
    possible = every_composition(4, 4)
    with torch.no_grad():
        shares = model(possible, model.conditions.nothing(len(possible.counts))).neg().exp()
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0))
    num = 10_000
    drawn = formulas(model.sample(torch.full((num,), 4), uniform(num)))
    found = torch.tensor([drawn.count(each) / num for each in formulas(possible)])
    assert (found - shares).abs().max() < 0.02
    colder = formulas(model.sample(torch.full((num,), 4), uniform(num), temperature=1e-4))
    assert len({tuple(each.items()) for each in colder}) == len({tuple(each) for each in colder})


def test_a_composition_may_stand_beside_longer_ones():
    model = tiny()
    both = Compositions(torch.tensor([[1, 0, 0], [3, 4, 5]]), torch.tensor([[2, 0, 0], [1, 2, 1]]))
    alone = Compositions(both.elements[:1, :1], both.counts[:1, :1])
    loss = model(both, [])
    torch.testing.assert_close(loss[:1], model(alone, []))
    loss.sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(grad.isfinite().all() for grad in grads)


def test_elements_that_are_asked_for():
    model = tiny(12, properties=["num_elements", "density"], chemical_system=True)
    num_atoms = torch.tensor([2, 3, 8, 8, 8])

    def draw(conditions, cfg_scale=1.0):
        asked = model.conditions.parse(conditions, 5)
        return formulas(model.sample(num_atoms, uniform(5), asked, cfg_scale))

    for number in (1, 2):
        assert {len(each) for each in draw({"num_elements": number, "density": 3.0}, 2.0)} == {
            number
        }
    assert all(set(each) == {3, 8} for each in draw({"chemical_system": "O-Li"}))
    assert {len(each) for each in draw({"num_elements": 1}, 0.0)} != {1}  # ignored
    each_its_own = draw({"num_elements": [2, 3, 1, 5, None]})
    assert [len(each) for each in each_its_own[:4]] == [2, 3, 1, 5]
    assert [sum(each.values()) for each in each_its_own] == num_atoms.tolist()
    with pytest.raises(UserError, match="of 2 atoms cannot have 3 elements"):
        draw({"num_elements": 3})
    with pytest.raises(UserError, match="is not the number of elements of chemical_system"):
        draw({"num_elements": 1, "chemical_system": "Li-O"})
    with pytest.raises(UserError, match="from 1 to 16 elements"):
        draw({"num_elements": 0})
    with pytest.raises(UserError, match=r"9 atoms, .*up to 8.*max_num_atoms"):
        model.sample(torch.tensor([9]), uniform(1))


def test_guidance():
    model = tiny(properties=["density"])
    with torch.no_grad():
        model.conditions.parts[0].nothing.fill_(3.0)
    num_atoms = torch.full((500,), 6)

    def mean(scale, conditions):
        asked = model.conditions.parse(conditions, 500)
        drawn = model.sample(num_atoms, uniform(500), asked, scale)
        return drawn.counts[:, 0].float().mean()

    assert mean(0, {"density": 5.0}) == mean(1, {})
    moved = [mean(scale, {"density": 5.0}) - mean(1, {}) for scale in (1, 4)]
    assert abs(moved[0]) > 0
    assert abs(moved[1]) > abs(moved[0])


def test_training():
    """It learns which compositions there are, and leaves the global random state alone."""
    cells = [[1, 1, 8], [3, 8], [11, 9], [11, 11, 8]] * 8
    types = torch.tensor([z for cell in cells for z in cell])
    batch = CrystalBatch.for_sampling(torch.tensor([len(cell) for cell in cells]), types)
    dataset = CrystalDataset.from_batch(batch)
    torch.manual_seed(0)
    model = CompositionModel(
        **{**TINY, "d_model": 32, "dim_feedforward": 64},
        **sizes(20, 4),
        conditions=Conditions(32, ["num_elements"], max_num_elements=20),
    )
    model.eval().requires_grad_(False)
    state = torch.get_rng_state()
    fit_compositions(model, dataset, epochs=250, dropout=0.5)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.is_trained
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    drawn = formulas(model.sample(torch.full((200,), 3), uniform(200)))
    known = [{1: 2, 8: 1}, {11: 2, 8: 1}]
    assert sum(each in known for each in drawn) > 180
    assert all(40 < drawn.count(each) < 160 for each in known)
    with pytest.raises(UserError, match="max_num_atoms"):
        fit_compositions(tiny(20, 2), dataset, 1, 0.5)
