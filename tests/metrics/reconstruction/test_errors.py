"""Compare reconstruction errors with values computed by hand."""

import math

import pytest
import torch

from src.data.schema import CrystalBatch
from src.metrics.reconstruction.errors import ReconstructionErrors


def make_pair() -> tuple[CrystalBatch, CrystalBatch]:
    """A prediction and its target: a cubic crystal of two atoms, an orthorhombic one of one."""
    target = CrystalBatch.from_tensors(
        atom_types=torch.tensor([11, 17, 6]),
        frac_coords=torch.tensor([[0, 0, 0], [0.5, 0.5, 0.5], [0.98, 0.5, 0]]),
        lattices=torch.stack([4 * torch.eye(3), torch.diag(torch.tensor([2.0, 3, 5]))]),
        num_atoms=torch.tensor([2, 1]),
    )
    gamma = math.radians(84)
    predicted = target.replace(
        atom_types=torch.tensor([11, 35, 6]),
        # off by -0.05 of 4 Å, 0.1 of 4 Å, 0.04 of 2 Å; the first and last cross a cell boundary
        frac_coords=torch.tensor([[0.95, 0, 0], [0.5, 0.5, 0.6], [0.02, 0.5, 0]]),
        lattices=torch.tensor(
            [
                [[4.3, 0, 0], [0, 4, 0], [0, 0, 4]],
                [[2, 0, 0], [3 * math.cos(gamma), 3 * math.sin(gamma), 0], [0, 0, 4.4]],
            ]
        ),
    )
    return predicted, target


def random_batch(seed: int, num_atoms: list[int]) -> CrystalBatch:
    generator = torch.Generator().manual_seed(seed)
    n, b = sum(num_atoms), len(num_atoms)
    return CrystalBatch.from_tensors(
        atom_types=torch.randint(1, 4, (n,), generator=generator),
        frac_coords=torch.rand(n, 3, generator=generator),
        lattices=4 * torch.eye(3) + torch.rand(b, 3, 3, generator=generator),
        num_atoms=torch.tensor(num_atoms),
    )


def plain(errors: ReconstructionErrors) -> dict[str, float]:
    return {name: float(value) for name, value in errors.compute().items()}


EXPECTED = {
    "atom_type_accuracy": 2 / 3,
    "frac_coords_rmse": math.sqrt((0.05**2 + 0.1**2 + 0.04**2) / 9),
    "coords_rmsd": math.sqrt((0.2**2 + 0.4**2 + 0.08**2) / 3),
    "lengths_mae": (0.3 + 0.6) / 6,
    "angles_mae": 6 / 6,
    # 4.3 x 4 x 4 instead of 4 x 4 x 4; 2 x 3 x 4.4 sheared to 84° instead of 2 x 3 x 5
    "volume_mape": (0.3 / 4 + 1 - 0.88 * math.sin(math.radians(84))) / 2,
}


def test_by_hand():
    errors = ReconstructionErrors()
    errors.update(*make_pair())
    assert plain(errors) == pytest.approx(EXPECTED, rel=1e-5)


def test_a_perfect_reconstruction():
    _, target = make_pair()
    errors = ReconstructionErrors()
    errors.update(target, target)
    assert plain(errors) == {**dict.fromkeys(EXPECTED, 0.0), "atom_type_accuracy": 1.0}


def test_a_mirrored_cell_has_the_same_volume():
    _, target = make_pair()
    errors = ReconstructionErrors()
    errors.update(target.replace(lattices=-target.lattices), target)
    assert plain(errors)["volume_mape"] == 0


def test_shifts_by_lattice_vectors_make_no_difference():
    predicted, target = make_pair()
    moved = predicted.replace(
        frac_coords=predicted.frac_coords + torch.tensor([[1.0, 0, 0], [0, -3, 0], [2, 1, -1]])
    )
    errors = ReconstructionErrors()
    errors.update(moved, target)
    assert plain(errors) == pytest.approx(EXPECTED, rel=1e-4)


def test_the_distribution_over_batches_makes_no_difference():
    sizes = [[1, 7], [3], [20, 2, 5]]
    parts, whole = ReconstructionErrors(), ReconstructionErrors()
    predictions = [random_batch(i, num) for i, num in enumerate(sizes)]
    targets = [random_batch(100 + i, num) for i, num in enumerate(sizes)]
    for predicted, target in zip(predictions, targets, strict=True):
        parts.update(predicted, target)
    join = [
        CrystalBatch.from_tensors(
            *(  # type: ignore[arg-type]
                torch.cat([getattr(batch, name) for batch in batches])
                for name in ("atom_types", "frac_coords", "lattices", "num_atoms")
            )
        )
        for batches in (predictions, targets)
    ]
    whole.update(*join)
    assert plain(parts) == pytest.approx(plain(whole), rel=1e-6)
    assert plain(parts)["coords_rmsd"] > 1  # random crystals are far apart


def test_reset():
    errors = ReconstructionErrors()
    errors.update(random_batch(0, [4]), random_batch(1, [4]))
    errors.reset()
    errors.update(*make_pair())
    assert plain(errors) == pytest.approx(EXPECTED, rel=1e-5)


def test_mixed_precision_does_not_change_the_errors():
    errors = ReconstructionErrors()
    with torch.autocast("cpu", torch.bfloat16):
        errors.update(*make_pair())
    assert plain(errors) == pytest.approx(EXPECTED, rel=1e-5)


def test_no_state_is_float64_which_apple_gpus_do_not_support():
    states = [torch.as_tensor(s) for s in ReconstructionErrors().metric_state.values()]
    assert {state.dtype for state in states} == {torch.float32, torch.int64}


def test_inputs_are_not_modified():
    predicted, target = make_pair()
    copies = [batch.frac_coords.clone() for batch in (predicted, target)]
    ReconstructionErrors().update(predicted, target)
    assert torch.equal(predicted.frac_coords, copies[0])
    assert torch.equal(target.frac_coords, copies[1])
