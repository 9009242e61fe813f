import numpy as np
import pytest
import torch
from pymatgen.core import Lattice

from src.utils.geometry import lattices_to_parameters, parameters_to_lattices, wrapped_difference


def random_cells(num: int, seed: int = 0) -> np.ndarray:
    """Right- and left-handed cells in random orientations, (num, 3, 3) float64."""
    return np.random.default_rng(seed).normal(scale=5.0, size=(num, 3, 3))


def possible_angles(num: int, seed: int = 0) -> np.ndarray:
    """Angles of random cells in degrees, (num, 3)."""
    return np.array([Lattice(cell).angles for cell in random_cells(num, seed)])


def test_lengths_and_angles_agree_with_pymatgen():
    cells = random_cells(200)
    lengths, angles = lattices_to_parameters(torch.tensor(cells))
    expected = np.array([Lattice(cell).parameters for cell in cells])
    np.testing.assert_allclose(lengths.numpy(), expected[:, :3], rtol=1e-12)
    np.testing.assert_allclose(angles.rad2deg().numpy(), expected[:, 3:], atol=1e-6)


def test_cells_agree_with_pymatgen():
    lengths = np.random.default_rng(1).uniform(2, 20, size=(200, 3))
    angles = possible_angles(200)
    cells = parameters_to_lattices(torch.tensor(lengths), torch.tensor(angles))
    parameters = zip(lengths.tolist(), angles.tolist(), strict=True)
    expected = np.array([Lattice.from_parameters(*abc, *angle).matrix for abc, angle in parameters])
    np.testing.assert_allclose(cells.numpy(), expected, atol=1e-9)
    assert (torch.linalg.det(cells) > 0).all()


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 0.01), (torch.float64, 1e-6)])
def test_parameters_survive_conversion_to_a_cell_and_back(dtype, atol):
    angles = torch.tensor(possible_angles(200), dtype=dtype).reshape(10, 20, 3)
    lengths = torch.linspace(2, 20, 600, dtype=dtype).reshape(10, 20, 3)
    # without nearly flat cells, whose height is a small difference of large numbers
    cells = parameters_to_lattices(torch.ones_like(lengths), angles)
    angles = angles[torch.linalg.det(cells) > 0.1]
    lengths = lengths[torch.linalg.det(cells) > 0.1]
    assert len(angles) > 100
    back_lengths, back_angles = lattices_to_parameters(parameters_to_lattices(lengths, angles))
    assert back_lengths.dtype == back_angles.dtype == dtype
    torch.testing.assert_close(back_lengths, lengths, rtol=1e-5, atol=0)
    torch.testing.assert_close(back_angles.rad2deg(), angles, rtol=0, atol=atol)


@pytest.mark.parametrize("angle", [0.1, 1.0, 179.0])
def test_angles_near_0_and_180_degrees_are_precise(angle):
    # An arccos in float32 would be off by 0.02 degrees near 0 and 180.
    matrix = Lattice.from_parameters(5, 6, 7, 90, 90, angle).matrix
    _, angles = lattices_to_parameters(torch.tensor(matrix, dtype=torch.float32))
    np.testing.assert_allclose(angles.rad2deg().numpy(), [90, 90, angle], atol=2e-5)


def test_three_small_angles():
    lengths = torch.tensor([10.0, 11.0, 12.0], dtype=torch.float64)
    angles = torch.tensor([0.5, 0.6, 0.7], dtype=torch.float64)
    back_lengths, back_angles = lattices_to_parameters(parameters_to_lattices(lengths, angles))
    torch.testing.assert_close(back_lengths, lengths)
    torch.testing.assert_close(back_angles.rad2deg(), angles, rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    "angles",
    [(10, 20, 120), (170, 170, 170), (0, 0, 0), (0, 90, 90), (180, 180, 180), (-40, 400, 90)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_impossible_angles_give_finite_cells(angles, dtype):
    lengths = torch.tensor([3.0, 4.0, 5.0], dtype=dtype)
    cell = parameters_to_lattices(lengths, torch.tensor(angles, dtype=dtype))
    assert torch.isfinite(cell).all()
    torch.testing.assert_close(cell.norm(dim=-1), lengths)
    if max(angles) <= 180 and angles != (0, 90, 90):
        assert abs(torch.linalg.det(cell)) < 1e-3  # flat


def test_gradients_of_cell_parameters_are_finite_at_right_angles():
    cell = torch.eye(3).mul(4).requires_grad_()
    lengths, angles = lattices_to_parameters(cell)
    (lengths.sum() + angles.sum()).backward()
    assert cell.grad is not None
    assert torch.isfinite(cell.grad).all()


def test_wrapped_difference_is_the_nearest_image_along_each_axis():
    generator = torch.Generator().manual_seed(0)
    x, other = torch.rand(2, 500, 3, generator=generator, dtype=torch.float64) * 6 - 3
    difference = wrapped_difference(x, other)
    images = (x - other)[..., None] + torch.arange(-7, 8)
    torch.testing.assert_close(difference.abs(), images.abs().amin(-1), rtol=0, atol=1e-12)
    moves = x - other - difference
    torch.testing.assert_close(moves, moves.round(), rtol=0, atol=1e-12)


def test_wrapped_difference_across_the_cell_boundary():
    difference = wrapped_difference(
        torch.tensor([0.99, 0.01, 0.2]), torch.tensor([0.01, 0.99, 5.2])
    )
    torch.testing.assert_close(difference, torch.tensor([-0.02, 0.02, 0.0]), rtol=0, atol=1e-6)
