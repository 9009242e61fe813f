import numpy as np
import pytest

from src.data.crystal import Crystal, CrystalError, check_crystal, niggli_reduce

# spglib 2.8 warns on every call that the way it reports failures will change
pytestmark = pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning")


def salt(**changes) -> Crystal:
    arrays = {
        "lattice": 4 * np.eye(3),
        "atom_types": np.array([11, 17]),
        "frac_coords": np.array([[0, 0, 0], [0.5, 0.5, 0.5]]),
    }
    return Crystal(**(arrays | changes))


def chiral_crystal(rng, left_handed=False) -> Crystal:
    """A cluster of four different atoms, less than 2 Å wide, in a skewed cell."""
    lattice = np.array([[6.0, 0, 0], [5.0, 6, 0], [-4.0, 9, 7]]) + rng.normal(0, 0.3, (3, 3))
    if left_handed:
        lattice = -lattice
    cluster = np.array([[0, 0, 0], [1, 0, 0], [0, 1.2, 0], [0, 0, 1.4]]) + rng.normal(
        0, 0.1, (4, 3)
    )
    frac_coords = (cluster @ np.linalg.inv(lattice) + rng.random(3)) % 1
    return Crystal(lattice, np.array([6, 7, 8, 9]), frac_coords)


# --- niggli_reduce ----------------------------------------------------------------------------


def test_reduction_does_not_modify_its_input():
    crystal = chiral_crystal(np.random.default_rng(1))
    copies = crystal.lattice.copy(), crystal.frac_coords.copy()
    niggli_reduce(crystal)
    np.testing.assert_array_equal(crystal.lattice, copies[0])
    np.testing.assert_array_equal(crystal.frac_coords, copies[1])


def test_every_basis_of_a_lattice_gives_the_same_niggli_cell():
    rng = np.random.default_rng(0)
    crystal = niggli_reduce(chiral_crystal(rng))
    np.testing.assert_allclose(niggli_reduce(crystal).lattice, crystal.lattice, atol=1e-12)
    for _ in range(50):
        transform = np.eye(3)
        for _ in range(4):
            i, j = rng.choice(3, 2, replace=False)
            transform[i] += rng.integers(-2, 3) * transform[j]
        other = Crystal(
            transform @ crystal.lattice,
            crystal.atom_types,
            crystal.frac_coords @ np.linalg.inv(transform) % 1,
        )
        reduced = niggli_reduce(other)
        np.testing.assert_allclose(reduced.lattice, crystal.lattice, atol=1e-9)


# --- check_crystal ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("crystal", "reason"),
    [
        (salt(atom_types=np.zeros(0, int), frac_coords=np.zeros((0, 3))), "no atoms"),
        (salt(atom_types=np.array([0, 17])), "atomic number 0 is outside 1 to 99"),
        (salt(atom_types=np.array([11, 100])), "atomic number 100 is outside 1 to 99"),
        (salt(frac_coords=np.array([[0, 0, np.nan], [0.5, 0.5, 0.5]])), "NaN or infinite"),
        (salt(frac_coords=np.array([[0, 0, np.inf], [0.5, 0.5, 0.5]])), "NaN or infinite"),
        (salt(lattice=np.full((3, 3), np.nan)), "lattice entry is not a number below 10000 Å"),
        (salt(lattice=np.ones((3, 3))), "no volume"),
        (salt(lattice=np.zeros((3, 3))), "no volume"),
        (salt(frac_coords=np.array([[0, 0, 0.01], [0, 0, 0.99]])), "atoms 0 and 1 are 0.080 Å"),
        (salt(lattice=np.diag([0.4, 40, 40])), "its own periodic image are 0.400 Å apart"),
    ],
)
def test_check_rejects(crystal, reason):
    with pytest.raises(CrystalError, match=reason):
        check_crystal(crystal)


def test_check_limits():
    check_crystal(salt(), max_num_atoms=2, max_atomic_number=17, min_distance=3.4)
    check_crystal(salt(lattice=-4 * np.eye(3)))
    with pytest.raises(CrystalError, match="2 atoms: more than 1"):
        check_crystal(salt(), max_num_atoms=1)
    with pytest.raises(CrystalError, match="atomic number 17 is outside 1 to 16"):
        check_crystal(salt(), max_atomic_number=16)
    with pytest.raises(CrystalError, match=r"3\.464 Å apart, closer than 3\.5 Å"):
        check_crystal(salt(), min_distance=3.5)


def brute_force_distance(crystal: Crystal, reach: int = 8) -> float:
    """The shortest distance between any two atoms, over all images within a few cells."""
    cells = np.stack(np.meshgrid(*3 * [np.arange(-reach, reach + 1)]), -1).reshape(-1, 3)
    offsets = crystal.frac_coords[:, None] - crystal.frac_coords
    distances = np.linalg.norm((offsets[:, :, None] + cells) @ crystal.lattice, axis=-1)
    return distances[distances > 1e-9].min()


def test_overlaps_agree_with_brute_force():
    """In compact, thin and skewed cells, just above and just below the true distance."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        lattice = np.eye(3) + rng.uniform(-0.5, 0.5, (3, 3))
        lattice *= rng.uniform(0.5, 4, (3, 1))
        lattice[1] += rng.integers(-2, 3) * lattice[0]
        num_atoms = rng.integers(1, 5)
        crystal = Crystal(lattice, np.full(num_atoms, 6), rng.random((num_atoms, 3)))
        distance = brute_force_distance(crystal)
        check_crystal(crystal, min_distance=distance * (1 - 1e-6))
        with pytest.raises(CrystalError, match="apart, closer than"):
            check_crystal(crystal, min_distance=distance * (1 + 1e-6))


def test_overlaps_are_found_in_large_cells():
    """More atoms than one chunk of the pair search holds."""
    grid = np.stack(np.meshgrid(*3 * [np.arange(8) / 8]), -1).reshape(-1, 3)
    crystal = Crystal(16 * np.eye(3), np.full(512, 6), grid)
    check_crystal(crystal, min_distance=1.999)
    moved = grid.copy()
    moved[500] = moved[300] + [0, 0, 0.01]
    with pytest.raises(CrystalError, match=r"atoms 300 and 500 are 0\.160 Å"):
        check_crystal(Crystal(crystal.lattice, crystal.atom_types, moved))
