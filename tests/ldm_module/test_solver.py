"""The solver, on flows whose solution is known."""

import torch

from src.ldm_module.solver import solve, time_grid


def test_a_point_is_reached_in_one_step():
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    target = torch.ones(4, 2)
    for steps in (1, 7):
        torch.testing.assert_close(solve(lambda x, t: target, noise, steps), target)


def gaussian(x, t, std=0.5):
    """The best prediction for latents that are normal with this standard deviation."""
    return t * std**2 / (t**2 * std**2 + (1 - t) ** 2) * x


def test_noise_becomes_the_distribution():
    """Here the flow scales noise by the standard deviation."""
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    torch.testing.assert_close(solve(gaussian, noise, 100), 0.5 * noise, atol=0.02, rtol=0)


def test_more_steps_are_more_exact():
    noise = torch.ones(1, 1, dtype=torch.float64)
    errors = [abs(solve(gaussian, noise, n).item() - 0.5) for n in (4, 16, 64)]
    assert errors == sorted(errors, reverse=True)


def test_the_noise_is_not_changed():
    noise = torch.ones(3, 2)
    solve(lambda x, t: x / 2, noise, 5)
    assert torch.equal(noise, torch.ones(3, 2))


def test_the_grid():
    assert time_grid(4) == [0, 0.25, 0.5, 0.75, 1]
    late = time_grid(4, shift=3)
    assert late[0] == 0
    assert late[-1] == 1
    assert late == sorted(late)
    assert late[3] > 0.75
    assert time_grid(4, shift=1 / 3)[1] < 0.25
