"""Check that a different description does not change the crystal."""

import pytest
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from src.data.schema import CrystalBatch
from src.metrics.reconstruction.invariance import TRANSFORMATIONS
from src.metrics.space_groups import space_group
from tests.crystals import rock_salt

ROCKSALT = rock_salt(5.6, "Na", "Cl")
CSCL = Structure.from_prototype("cscl", ["Cs", "Cl"], a=4.1)
RUTILE = Structure.from_spacegroup(
    "P4_2/mnm", Lattice.tetragonal(4.594, 2.959), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
)


@pytest.fixture
def batch() -> CrystalBatch:
    triclinic = Structure(
        Lattice.from_parameters(3.3, 4.4, 5.5, 80, 95, 110),
        ["O", "Ti", "Sr", "O"],
        [[0.1, 0.2, 0.3], [0.6, 0.7, 0.1], [0.35, 0.9, 0.8], [0.0, 0.5, 0.999]],
    )
    return CrystalBatch.from_structures([ROCKSALT, triclinic, RUTILE, CSCL, triclinic])


def moved_by(name: str, batch: CrystalBatch, seed: int = 0):
    return TRANSFORMATIONS[name](batch, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_the_crystals_stay_the_same(name, batch):
    matcher = StructureMatcher(stol=0.01, ltol=0.01, angle_tol=0.1, primitive_cell=False)
    transformed = moved_by(name, batch)
    for old, new in zip(batch.to_structure(), transformed.batch.to_structure(), strict=True):
        assert matcher.fit(old, new)
        assert new.volume == pytest.approx(old.volume, rel=1e-5)
        assert space_group(new) == space_group(old)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.parametrize("seed", range(3))
def test_undo_restores_the_original_description(name, batch, seed):
    transformed = moved_by(name, batch, seed)
    back = transformed.undo(transformed.batch)
    assert torch.equal(back.atom_types, batch.atom_types)
    difference = back.frac_coords - batch.frac_coords
    assert (difference - difference.round()).abs().max() < 1e-5
    torch.testing.assert_close(back.lengths, batch.lengths, rtol=0, atol=1e-5)
    torch.testing.assert_close(back.angles, batch.angles, rtol=0, atol=1e-3)
    if name != "rotation":  # not undone, because decoders do not predict the orientation
        torch.testing.assert_close(back.lattices, batch.lattices, rtol=0, atol=1e-5)


def test_every_transformation_changes_only_its_own_fields(batch):
    def changed(name: str) -> set[str]:
        moved = moved_by(name, batch).batch
        fields = ("atom_types", "frac_coords", "lattices", "lengths")
        return {
            f for f in fields if not torch.allclose(getattr(moved, f), getattr(batch, f), atol=1e-4)
        }

    fields = {name: changed(name) for name in TRANSFORMATIONS if name != "cell"}
    assert fields["translation"] == {"frac_coords"}
    assert fields["rotation"] == {"lattices"}
    assert fields["permutation"] == {"atom_types", "frac_coords"}
    moved = moved_by("cell", batch).batch
    assert torch.equal(moved.atom_types, batch.atom_types)
    changes = (moved.lengths - batch.lengths).abs() > 0.1
    assert (changes.sum(dim=1) == 1).all()  # one vector of each crystal


def test_a_translation_is_rigid_within_a_crystal_and_differs_between_crystals(batch):
    moved = moved_by("translation", batch).batch
    shift = (moved.frac_coords - batch.frac_coords).remainder(1)
    parts = shift.split(batch.num_atoms.tolist())
    for part in parts:
        apart = part - part[0]
        assert (apart - apart.round()).abs().max() < 1e-5
    assert (parts[1][0] - parts[4][0]).abs().max() > 0.01


def test_a_permutation_stays_within_the_crystals(batch):
    moved = moved_by("permutation", batch).batch
    assert torch.equal(moved.num_atoms, batch.num_atoms)
    for name in ("atom_types", "frac_coords"):
        pairs = zip(*(b[name].split(b.num_atoms.tolist()) for b in (batch, moved)), strict=True)
        for old, new in pairs:
            assert sorted(old.tolist()) == sorted(new.tolist())


def test_transformations_are_reproducible(batch):
    for name in TRANSFORMATIONS:
        first, again, other = (moved_by(name, batch, seed).batch for seed in (5, 5, 6))
        fields = ("frac_coords", "lattices")
        assert all(torch.equal(first[f], again[f]) for f in fields)
        assert not all(torch.equal(first[f], other[f]) for f in fields)


def test_inputs_are_not_modified(batch):
    before = {name: batch[name].clone() for name in ("atom_types", "frac_coords", "lattices")}
    for name in TRANSFORMATIONS:
        transformed = moved_by(name, batch)
        moved = transformed.batch.frac_coords.clone()
        transformed.undo(transformed.batch)
        assert torch.equal(transformed.batch.frac_coords, moved)
    for name, value in before.items():
        assert torch.equal(batch[name], value)
