"""Space groups of textbook crystals; motions that leave every crystal what it is."""

import pytest
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from pymatgen.symmetry.groups import PointGroup

from src.data.schema import CrystalBatch
from src.metrics.symmetry import MOTIONS, SYMPREC, space_group

FCC = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
CHLORIDE = [[0.5, 0.5, 0.5], [0, 0, 0.5], [0, 0.5, 0], [0.5, 0, 0]]


def rocksalt() -> Structure:
    return Structure(Lattice.cubic(5.6), ["Na"] * 4 + ["Cl"] * 4, FCC + CHLORIDE)


def cscl() -> Structure:
    return Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0] * 3, [0.5] * 3])


def rutile() -> Structure:
    u = 0.305
    oxygen = [[u, u, 0], [-u, -u, 0], [0.5 + u, 0.5 - u, 0.5], [0.5 - u, 0.5 + u, 0.5]]
    lattice = Lattice.tetragonal(4.594, 2.959)
    return Structure(lattice, ["Ti"] * 2 + ["O"] * 4, [[0] * 3, [0.5] * 3, *oxygen])


def supercell(structure: Structure, *size: int) -> Structure:
    return structure.copy().make_supercell(size)


# Space groups


@pytest.mark.parametrize(
    ("structure", "number"), [(rocksalt(), 225), (cscl(), 221), (rutile(), 136)]
)
def test_a_group_does_not_depend_on_the_cell(structure, number):
    """The choice of a primitive, conventional, reduced or larger cell is no property of it."""
    cells = [
        structure,
        structure.get_primitive_structure(),
        structure.get_reduced_structure("niggli"),
        supercell(structure, 2, 1, 1),
        supercell(structure, 1, 3, 2),
    ]
    groups = [space_group(cell) for cell in cells]
    assert groups[0].number == number
    assert groups == [groups[0]] * len(cells)


@pytest.mark.parametrize(
    ("structure", "symbol", "primitive"),
    [(rocksalt(), "m-3m", 2), (cscl(), "m-3m", 2), (rutile(), "4/mmm", 6)],
)
def test_operations_are_those_of_the_tables(structure, symbol, primitive):
    order = len(PointGroup(symbol).symmetry_ops)
    assert space_group(structure).operations_per_atom == order / primitive


def test_a_lost_translation_is_less_symmetry():
    """Cu3Au has the point group of copper but a primitive cell four times as large."""
    copper = Structure(Lattice.cubic(3.7), ["Cu"] * 4, FCC)
    ordered = copper.copy()
    ordered[0] = "Au"
    assert (space_group(copper).number, space_group(ordered).number) == (225, 221)
    ratio = space_group(copper).operations_per_atom / space_group(ordered).operations_per_atom
    assert ratio == 4


def test_a_distortion_beyond_the_tolerance_loses_the_group():
    def displaced(by: float) -> Structure:
        structure = rocksalt()
        structure.translate_sites([0], [by, 0, 0], frac_coords=False)
        return structure

    ideal = space_group(rocksalt())
    assert space_group(displaced(0.2 * SYMPREC)) == ideal
    lost = space_group(displaced(2 * SYMPREC))
    assert lost.number == 99  # P4mm: the axis of the displacement, and what turns about it
    assert lost.operations_per_atom == 1  # 8 operations, 8 atoms, no centring any more
    assert lost.operations_per_atom < ideal.operations_per_atom


def test_the_tolerance_is_in_angstrom():
    structure = cscl()
    structure.translate_sites([0], [0.05, 0, 0], frac_coords=False)
    numbers = [space_group(structure, symprec).number for symprec in (0.01, 0.2)]
    assert numbers == [99, 221]


def test_no_group_for_what_is_no_crystal():
    close = Structure(Lattice.cubic(4), ["Cs", "Cs"], [[0] * 3, [0.001, 0, 0]])
    assert space_group(close) is None
    for cell in (torch.zeros(3, 3), 1e-6 * torch.eye(3), torch.ones(3, 3)):
        flat = Structure(Lattice(cell.numpy()), ["Cs", "Cl"], [[0] * 3, [0.5] * 3])
        assert space_group(flat) is None


# Motions


@pytest.fixture
def batch() -> CrystalBatch:
    triclinic = Structure(
        Lattice.from_parameters(3.3, 4.4, 5.5, 80, 95, 110),
        ["O", "Ti", "Sr", "O"],
        [[0.1, 0.2, 0.3], [0.6, 0.7, 0.1], [0.35, 0.9, 0.8], [0.0, 0.5, 0.999]],
    )
    return CrystalBatch.from_structures([rocksalt(), triclinic, rutile(), cscl(), triclinic])


def moved_by(name: str, batch: CrystalBatch, seed: int = 0):
    return MOTIONS[name](batch, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", MOTIONS)
def test_the_crystals_stay_the_same(name, batch):
    matcher = StructureMatcher(stol=0.01, ltol=0.01, angle_tol=0.1, primitive_cell=False)
    motion = moved_by(name, batch)
    for old, new in zip(batch.to_structure(), motion.moved.to_structure(), strict=True):
        assert matcher.fit(old, new)
        assert new.volume == pytest.approx(old.volume, rel=1e-5)
        assert space_group(new) == space_group(old)


@pytest.mark.parametrize("name", MOTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_undo_gives_back_how_they_were_written(name, batch, seed):
    motion = moved_by(name, batch, seed)
    back = motion.undo(motion.moved)
    assert torch.equal(back.atom_types, batch.atom_types)
    difference = back.frac_coords - batch.frac_coords
    assert (difference - difference.round()).abs().max() < 1e-5
    torch.testing.assert_close(back.lengths, batch.lengths, rtol=0, atol=1e-5)
    torch.testing.assert_close(back.angles, batch.angles, rtol=0, atol=1e-3)
    if name != "rotation":  # an orientation is not given back: no decoder is asked for one
        torch.testing.assert_close(back.lattices, batch.lattices, rtol=0, atol=1e-5)


def test_every_motion_changes_what_it_is_named_after(batch):
    def changed(name: str) -> set[str]:
        moved = moved_by(name, batch).moved
        fields = ("atom_types", "frac_coords", "lattices", "lengths")
        return {
            f for f in fields if not torch.allclose(getattr(moved, f), getattr(batch, f), atol=1e-4)
        }

    fields = {name: changed(name) for name in MOTIONS if name != "cell"}
    assert fields["translation"] == {"frac_coords"}
    assert fields["rotation"] == {"lattices"}
    assert fields["permutation"] == {"atom_types", "frac_coords"}
    moved = moved_by("cell", batch).moved
    assert torch.equal(moved.atom_types, batch.atom_types)
    changes = (moved.lengths - batch.lengths).abs() > 0.1
    assert (changes.sum(dim=1) == 1).all()  # of each crystal, one vector


def test_a_translation_is_rigid_within_a_crystal_and_differs_between_crystals(batch):
    moved = moved_by("translation", batch).moved
    shift = (moved.frac_coords - batch.frac_coords).remainder(1)
    parts = shift.split(batch.num_atoms.tolist())
    for part in parts:
        apart = part - part[0]
        assert (apart - apart.round()).abs().max() < 1e-5
    assert (parts[1][0] - parts[4][0]).abs().max() > 0.01


def test_a_permutation_stays_within_the_crystals(batch):
    moved = moved_by("permutation", batch).moved
    assert torch.equal(moved.num_atoms, batch.num_atoms)
    for name in ("atom_types", "frac_coords"):
        pairs = zip(*(b[name].split(b.num_atoms.tolist()) for b in (batch, moved)), strict=True)
        for old, new in pairs:
            assert sorted(old.tolist()) == sorted(new.tolist())


def test_a_seed_decides(batch):
    for name in MOTIONS:
        first, again, other = (moved_by(name, batch, seed).moved for seed in (5, 5, 6))
        fields = ("frac_coords", "lattices")
        assert all(torch.equal(first[f], again[f]) for f in fields)
        assert not all(torch.equal(first[f], other[f]) for f in fields)


def test_inputs_stay_as_they_are(batch):
    before = {name: batch[name].clone() for name in ("atom_types", "frac_coords", "lattices")}
    for name in MOTIONS:
        motion = moved_by(name, batch)
        moved = motion.moved.frac_coords.clone()
        motion.undo(motion.moved)
        assert torch.equal(motion.moved.frac_coords, moved)
    for name, value in before.items():
        assert torch.equal(batch[name], value)
