"""What can be asked for."""

import numpy as np
import pytest
import torch

from src.ldm_module.conditions import (
    COMPUTED,
    Conditions,
    Property,
    check_beyond_composition,
    drop,
)
from src.utils.errors import UserError


def test_computed_properties_are_those_of_pymatgen(batch):
    structures = batch.to_structure()
    found = {name: function(batch).numpy() for name, function in COMPUTED.items()}
    np.testing.assert_allclose(found["density"], [s.density for s in structures], rtol=1e-4)
    np.testing.assert_allclose(
        found["volume_per_atom"], [s.volume / len(s) for s in structures], rtol=1e-5
    )
    assert found["num_elements"].tolist() == [s.n_elems for s in structures]


@pytest.fixture
def conditions() -> Conditions:
    torch.manual_seed(0)
    made = Conditions(8, ["density", "gap"], chemical_system=True, max_num_elements=60)
    for part in made.parts:
        torch.nn.init.normal_(part.nothing)
    return made


def test_values_of_crystals(conditions, batch):
    density, gap, system = conditions.values(batch)
    assert density.shape == gap.shape == (3, 1)
    assert gap[:, 0].isnan().tolist() == [False, True, False]
    assert system.shape == (3, 60)
    assert [row.nonzero()[:, 0].tolist() for row in system] == [[8], [8, 22, 38], [8, 22, 38]]


def test_a_missing_value_is_no_request(conditions, batch):
    values = conditions.values(batch)
    whole = conditions(values)
    without = [*values]
    without[1] = torch.full((3, 1), torch.nan)
    changed = (conditions(without) - whole).abs().amax(1) > 1e-5
    assert changed.tolist() == [True, False, True]
    nothing = conditions(conditions.nothing(3))
    torch.testing.assert_close(nothing, sum(part.nothing for part in conditions.parts).expand(3, 8))
    assert whole.isfinite().all()


def test_gradients_are_finite_where_values_are_missing(conditions, batch):
    conditions(conditions.values(batch)).sum().backward()
    assert all(p.grad.isfinite().all() for p in conditions.parameters() if p.grad is not None)


def test_numbers_are_standardized():
    part = Property("gap", 8)
    part.fit(torch.tensor([[1.0], [torch.nan], [5.0]]))
    assert part.mean == 3
    assert part.std == 2
    part.fit(torch.tensor([[4.0]]))
    assert part.std > 0
    with pytest.raises(UserError, match=r"'gap'.*no training crystal"):
        part.fit(torch.tensor([[torch.nan]]))


def test_requests(conditions):
    density, gap, system = conditions.parse({"density": 5, "chemical_system": "Na-Cl"}, 2)
    assert density[:, 0].tolist() == [5, 5]
    assert gap.isnan().all()
    assert [row.nonzero()[:, 0].tolist() for row in system] == [[11, 17]] * 2
    density, *_, system = conditions.parse(
        {"density": [5, None], "chemical_system": [["O"], "Ti, O"]}, 2
    )
    assert density[0] == 5
    assert density[1].isnan()
    assert [row.nonzero()[:, 0].tolist() for row in system] == [[8], [8, 22]]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"densty": 5}, r"\['densty'\].*density, gap, chemical_system"),
        ({"density": "heavy"}, "density must be a number, not 'heavy'"),
        ({"chemical_system": "Na-Xx"}, "'Xx' is no element"),
        ({"chemical_system": "Na-U"}, "'U' is no element that the model knows"),
    ],
)
def test_requests_that_make_no_sense(conditions, asked, message):
    with pytest.raises(UserError, match=message):
        conditions.parse(asked, 2)


def test_a_given_composition_settles_some_conditions():
    check_beyond_composition({"density": 5})
    with pytest.raises(UserError, match=r"settle chemical_system, num_elements: leave out"):
        check_beyond_composition({"num_elements": 3, "density": 5, "chemical_system": "Na-Cl"})


def test_properties_that_are_not_there(batch):
    with pytest.raises(UserError, match=r"'bulk_modulus'.*\(gap\).*data\.properties"):
        Conditions(8, ["bulk_modulus"]).values(batch)
    with pytest.raises(UserError, match="twice"):
        Conditions(8, ["gap", "gap"])


def test_no_conditions_at_all(batch):
    conditions = Conditions(8)
    assert conditions(conditions.values(batch)) is None
    with pytest.raises(UserError, match="without conditions"):
        conditions.parse({"density": 1}, 1)


def test_conditions_are_hidden_as_often_as_told():
    values = [torch.zeros(50_000, 1), torch.zeros(50_000, 3)]
    uniform = torch.rand(50_000, 3, generator=torch.Generator().manual_seed(0))
    hidden = [v.isnan().any(1) for v in drop(values, uniform, 0.2)]
    assert not any(v.isnan().any() for v in values)
    assert hidden[0].float().mean().item() == pytest.approx(0.2 + 0.8 * 0.2, abs=0.01)
    both = (hidden[0] & hidden[1]).float().mean().item()
    assert both == pytest.approx(0.2 + 0.8 * 0.04, abs=0.01)
    assert not any(v.isnan().any() for v in drop(values, uniform, 0.0))
