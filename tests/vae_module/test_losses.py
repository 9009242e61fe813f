import math

import pytest
import torch
from pymatgen.core import Lattice, Structure

from src.data import CrystalBatch
from src.vae_module import DiagonalGaussianDistribution
from src.vae_module.decoders.transformer import Prediction
from src.vae_module.losses import frac_coords_loss, lengths_loss, vae_loss

WEIGHTS = {"atom_types": 2.0, "lengths": 3.0, "angles": 5.0, "frac_coords": 7.0, "kl": 11.0}


@pytest.fixture
def batch() -> CrystalBatch:
    cubic = Structure(Lattice.cubic(4.0), ["Na"] * 8, [[i / 8, 0.25, 0.5] for i in range(8)])
    return CrystalBatch.from_structures([cubic])


def perfect(batch: CrystalBatch) -> Prediction:
    phase = 2 * math.pi * batch.frac_coords
    return Prediction(
        atom_logits=torch.full((8, 100), -50.0).scatter(1, batch.atom_types[:, None], 50.0),
        coords=torch.stack([phase.cos(), phase.sin()], -1),
        lengths_scaled=batch.lengths_scaled,
        angles_radians=batch.angles_radians,
    )


def posterior() -> DiagonalGaussianDistribution:
    # two channels with mean 1 and variance e: the KL of each is (1 + e - 1 - 1) / 2
    return DiagonalGaussianDistribution(torch.ones(8, 4))


def test_the_loss_of_a_perfect_prediction_is_the_kl(batch):
    loss, terms = vae_loss(perfect(batch), posterior(), batch, WEIGHTS)
    assert set(terms) == set(WEIGHTS)
    for name in ("atom_types", "lengths", "angles", "frac_coords"):
        assert terms[name] < 1e-9
    assert terms["kl"].item() == pytest.approx(math.e - 1)
    assert loss.item() == pytest.approx(11 * (math.e - 1))


def test_each_term_by_hand(batch):
    correct = perfect(batch)
    prediction = Prediction(
        atom_logits=torch.zeros(8, 100),
        coords=torch.zeros(8, 3, 2),
        lengths_scaled=correct.lengths_scaled + 0.5,
        angles_radians=correct.angles_radians + torch.tensor([0.3, 0.0, 0.0]),
    )
    loss, terms = vae_loss(prediction, posterior(), batch, WEIGHTS)
    expected = {
        "atom_types": math.log(100),
        "lengths": 0.25,
        "angles": 0.03,
        # the distance of the circle from its center is 1
        "frac_coords": math.sqrt(1 + 0.05**2) - 0.05,
        "kl": math.e - 1,
    }
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value, rel=1e-5), name
    total = sum(WEIGHTS[name] * value for name, value in expected.items())
    assert loss.item() == pytest.approx(total, rel=1e-5)


def test_lengths_are_scaled_by_the_number_of_atoms(batch):
    assert torch.allclose(batch.lengths_scaled, torch.tensor(2.0))  # 4 Å / 8^(1/3)


def test_coordinates_on_the_torus_are_periodic():
    target = torch.tensor([[0.001, 0.5, 0.5]])
    phase = 2 * math.pi * torch.tensor([[0.999, 0.5, 0.5]])
    coords = torch.stack([phase.cos(), phase.sin()], -1)
    # near the target: (2 pi)^2 times the squared difference, averaged over three directions
    expected = (2 * math.pi * 0.002) ** 2 / 3
    loss = frac_coords_loss(coords, target, delta=None)
    assert loss.item() == pytest.approx(expected, rel=1e-3)


def test_the_loss_of_coordinates_is_quadratic_below_delta_and_linear_above():
    def loss(error: float) -> float:
        """Loss for an error of one coordinate, given as a distance to the circle."""
        target = torch.tensor([[0.3, 0.5, 0.7]], dtype=torch.float64)
        phase = 2 * math.pi * target
        coords = torch.stack([phase.cos(), phase.sin()], -1)
        coords[0, 1, 1] += error
        return 3 * frac_coords_loss(coords, target, delta=0.05).item()

    assert loss(1e-3) == pytest.approx(1e-6 / (2 * 0.05), rel=1e-3)
    assert loss(0.05) == pytest.approx(0.05 * (math.sqrt(2) - 1))
    assert loss(2.0) - loss(1.0) == pytest.approx(1, rel=1e-3)


def test_the_gradient_of_perfect_coordinates_is_zero(batch):
    coords = perfect(batch).coords.requires_grad_()
    frac_coords_loss(coords, batch.frac_coords).mean().backward()
    assert torch.equal(coords.grad, torch.zeros_like(coords))


def test_raw_coordinates_are_not_periodic():
    loss = frac_coords_loss(torch.tensor([[0.999, 0.5, 0.5]]), torch.tensor([[0.001, 0.5, 0.5]]))
    assert loss.item() == pytest.approx(0.998**2 / 3)


def test_the_loss_of_lengths_is_quadratic_below_delta_and_linear_above():
    true = torch.zeros(2, 3)
    predicted = torch.tensor([[0.3, 0.0, 0.0], [2.0, 0.0, 0.0]])
    squared = lengths_loss(predicted, true, delta=None)
    assert squared.tolist() == pytest.approx([0.09 / 3, 4.0 / 3])
    # the tangent at 0.5 has the slope 1
    huber = lengths_loss(predicted, true, delta=0.5)
    assert huber.tolist() == pytest.approx([0.09 / 3, (0.25 + 1.5) / 3])


def test_geometry_weights_do_not_affect_types_and_kl():
    cells = [Structure(Lattice.cubic(a), ["Na"] * n, [[0, 0, 0]] * n) for a, n in ((4, 1), (5, 2))]
    batch = CrystalBatch.from_structures(cells)
    prediction = Prediction(
        atom_logits=torch.zeros(3, 100),
        coords=torch.zeros(3, 3, 2),
        lengths_scaled=batch.lengths_scaled + torch.tensor([[0.1], [0.2]]),
        angles_radians=batch.angles_radians + torch.tensor([[0.3], [0.4]]),
    )
    moments = DiagonalGaussianDistribution(torch.ones(3, 4))
    _, unweighted = vae_loss(prediction, moments, batch, WEIGHTS)
    _, weighted = vae_loss(
        prediction, moments, batch, WEIGHTS, geometry_weights=torch.tensor([0.0, 2.0])
    )
    assert weighted["lengths"].item() == pytest.approx(0.2**2, rel=1e-4)
    assert weighted["angles"].item() == pytest.approx(0.4**2, rel=1e-4)
    # two of three atoms, with weight 2
    assert weighted["frac_coords"].item() == pytest.approx(4 / 3 * unweighted["frac_coords"].item())
    for name in ("atom_types", "kl"):
        assert weighted[name] == unweighted[name]


def test_there_is_no_term_for_given_atom_types(batch):
    prediction = Prediction(None, *(getattr(perfect(batch), n) for n in Prediction.__slots__[1:]))
    loss, terms = vae_loss(prediction, posterior(), batch, WEIGHTS)
    assert "atom_types" not in terms
    assert loss.item() == pytest.approx(11 * (math.e - 1))
