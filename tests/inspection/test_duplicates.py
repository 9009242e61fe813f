import functools

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from src.inspection import duplicates
from src.inspection.duplicates import find_duplicates, reduce_crystal, reduced_rms_distance
from src.metrics.matching import CDVAE, PYMATGEN, MatcherSettings, PairResult, rms_distance

CENTRED = [[0, 0, 0], [0.5, 0.5, 0.5]]
ROCKSALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], CENTRED)
CSCL_TYPE = Structure(Lattice.cubic(3.4), ["Na", "Cl"], CENTRED)  # of the same composition
LIF = Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.0), ["Li", "F"], CENTRED)


def in_other_words(structure: Structure) -> Structure:
    """The same crystal: another cell, twice as large, another origin, the atoms reversed."""
    other = structure * [[1, 1, 0], [0, 1, 0], [0, 0, 2]]
    other.translate_sites(range(len(other)), [0.1, 0.2, 0.3])
    return Structure.from_sites(other[::-1])


def rattled(structure: Structure, seed: int, size: float = 0.3) -> Structure:
    """A crystal with atoms elsewhere, in Å."""
    other = structure.copy()
    for i, shift in enumerate(np.random.default_rng(seed).normal(size=(len(other), 3))):
        other.translate_sites([i], size * shift, frac_coords=False)
    return other


def search(crystals, splits, **options):
    """`find_duplicates` in this process; matches as {(crystal, split): match}."""
    found = find_duplicates(
        [s.composition.reduced_formula for s in crystals],
        np.array(splits),
        lambda indices: [crystals[i] for i in indices],
        num_workers=0,
        **options,
    )
    return found, {(s.crystal, s.split): s.match for s in found.searches if s.match is not None}


@pytest.mark.parametrize("settings", [PYMATGEN, CDVAE])
def test_reducing_first_changes_no_result(settings):
    pairs = [
        (ROCKSALT, in_other_words(ROCKSALT)),
        (ROCKSALT, CSCL_TYPE),
        *((rattled(LIF, i), rattled(LIF, i + 1)) for i in range(6)),
    ]
    expected = [rms_distance(one, other, settings) for one, other in pairs]
    found = [
        reduced_rms_distance(*(reduce_crystal(s).to_structure() for s in pair), settings)
        for pair in pairs
    ]
    assert found == [x if x is None else pytest.approx(x, abs=1e-6) for x in expected]
    assert None in found
    assert found[0] == pytest.approx(0, abs=1e-6)


def test_a_fingerprint_knows_neither_cell_nor_volume():
    small = ROCKSALT.copy().scale_lattice(99)
    crystals = (ROCKSALT, in_other_words(ROCKSALT), in_other_words(small))
    prints = [reduce_crystal(s).fingerprint for s in crystals]
    assert prints[0].shape == (32,)
    assert prints[0][0] == pytest.approx(2.8 / (5.6 / 2), rel=1e-6)  # (V/N)^(1/3) is half an edge
    np.testing.assert_allclose(prints[1], prints[0], rtol=1e-6)
    np.testing.assert_allclose(prints[2], prints[0], rtol=1e-6)
    assert len(reduce_crystal(in_other_words(ROCKSALT)).atom_types) == 2
    assert np.abs(reduce_crystal(CSCL_TYPE).fingerprint - prints[0]).max() > 0.05


def test_within_and_across_splits():
    again = in_other_words(ROCKSALT)
    crystals = [ROCKSALT, CSCL_TYPE, LIF, again, again, again, CSCL_TYPE, rattled(LIF, 0, 1.0)]
    found, matches = search(crystals, [0, 0, 0, 0, 1, 2, 2, 2])
    assert matches == {
        (3, 0): 0,  # within train
        (4, 0): pytest.approx(0, abs=3),  # of val: 0 or 3, which are the same
        (5, 0): pytest.approx(0, abs=3),
        (5, 1): 4,
        (6, 0): 1,
    }
    assert matches[4, 0] != 1
    assert (found.num_unanswered, found.num_checked, found.not_reduced) == (0, 0, [])
    assert not any(s.is_cut_short for s in found.searches)
    assert max(s.rms for s in found.searches if s.match is not None) < 1e-3


def test_only_those_that_are_asked_for_are_searched():
    crystals = [ROCKSALT] * 4 + [LIF] * 2
    asked = np.array([True, False, True, False, True, False])
    found, matches = search(crystals, [0, 0, 1, 1, 1, 1], asked=asked)
    assert matches.keys() == {(2, 0)}
    assert [s.crystal for s in found.searches] == [2]  # of the others none come before it


def test_nothing_to_compare():
    for crystals in ([], [LIF], [LIF, ROCKSALT]):
        found, matches = search(crystals, [0] * len(crystals))
        assert (matches, found.searches, found.num_comparisons) == ({}, [], 0)


class TestBounded:
    """Crystals of one composition, none like another, but for the last, which is one of them."""

    @pytest.fixture(autouse=True)
    def make(self):
        self.crystals = [rattled(ROCKSALT, seed, 0.9) for seed in range(8)]
        self.again = [*self.crystals, in_other_words(self.crystals[1])]
        strict = MatcherSettings(stol=0.01, ltol=0.01, angle_tol=0.5)  # none of the rattled match
        self.search = functools.partial(search, splits=[0] * 8 + [1], settings=strict)

    def test_the_likeliest_is_compared_first(self):
        found, matches = self.search(
            [*self.crystals, in_other_words(self.crystals[1])], max_compared=1, max_check=0
        )
        assert matches == {(8, 0): 1}
        assert {len(s.nearest) for s in found.searches} == {1}
        assert found.num_comparisons == 8
        # crystal 1 has one before it, which was compared; 8 is found
        assert [s.crystal for s in found.searches if s.is_cut_short] == [2, 3, 4, 5, 6, 7]

    def test_what_is_missed_is_estimated(self, monkeypatch):
        """Where fingerprints mislead, the check finds what the bounded search did not."""
        lie = np.random.default_rng(0).permutation(32)
        far = iter(range(9))

        def misled(structure, *_):
            cell = reduce_crystal(structure)
            number = next(far)
            return type(cell)(cell.lattice, cell.atom_types, cell.frac_coords, 1.0 * lie * number)

        monkeypatch.setattr(duplicates, "reduce_crystal", misled)
        found, matches = self.search(self.again, max_compared=2, max_check=0)
        assert matches == {}  # the last was compared with 7 and 6
        assert sum(s.is_cut_short for s in found.searches) == 6

        far = iter(range(9))
        found, matches = self.search(self.again, max_compared=2, max_check=1000)
        assert matches == {(8, 0): 1}
        assert (found.num_checked, found.num_found_by_check) == (6, 1)
        assert not any(s.is_cut_short for s in found.searches)
        # each of the 28 + 8 pairs, once
        assert found.num_comparisons == 36

    def test_the_check_keeps_to_its_budget(self):
        found, _ = self.search([*self.crystals, self.crystals[0]], max_compared=1, max_check=7)
        assert 0 < found.num_checked < 6
        assert found.num_comparisons <= 8 + 7
        assert sum(s.is_cut_short for s in found.searches) == 6 - found.num_checked


def test_no_answer_is_counted(monkeypatch):
    def match(self, targets, predictions, settings):
        return [PairResult("timeout", message="no result")] * len(targets)

    crystals = [ROCKSALT, ROCKSALT, ROCKSALT]
    reduced = [reduce_crystal(s) for s in crystals]
    monkeypatch.setattr(duplicates, "map_structures", lambda *_: reduced)
    monkeypatch.setattr(duplicates.MatcherPool, "match", match)
    found, matches = search(crystals, [0, 0, 1])
    assert matches == {}
    assert (found.num_comparisons, found.num_unanswered) == (3, 3)
    assert [s.num_unanswered for s in found.searches] == [1, 2]

    monkeypatch.setattr(duplicates, "map_structures", lambda *_: [reduced[0], None, reduced[2]])
    found, _ = search(crystals, [0, 0, 1])
    assert found.not_reduced == [1]
    assert found.num_comparisons == 1
