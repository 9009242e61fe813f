import functools

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from src.inspection import duplicates
from src.inspection.duplicates import find_duplicates, reduce_crystal, reduced_rms_distance
from src.metrics.matching import CDVAE, PYMATGEN, MatcherSettings, PairResult, rms_distance
from tests.crystals import rock_salt

CENTERED = [[0, 0, 0], [0.5, 0.5, 0.5]]
ROCKSALT = rock_salt(5.6, "Na", "Cl")
CSCL_TYPE = Structure(
    Lattice.cubic(3.4), ["Na", "Cl"], CENTERED
)  # the same composition as ROCKSALT
LIF = rock_salt(4.0, "Li", "F")


def redescribed(structure: Structure) -> Structure:
    """The same crystal with a sheared and doubled cell, another origin and reversed atoms."""
    other = structure * [[1, 1, 0], [0, 1, 0], [0, 0, 2]]
    other.translate_sites(range(len(other)), [0.1, 0.2, 0.3])
    return Structure.from_sites(other[::-1])


def rattled(structure: Structure, seed: int, size: float = 0.3) -> Structure:
    """The crystal with randomly displaced atoms; `size` is in Å."""
    other = structure.copy()
    for i, shift in enumerate(np.random.default_rng(seed).normal(size=(len(other), 3))):
        other.translate_sites([i], size * shift, frac_coords=False)
    return other


def search(crystals, splits, **options):
    """Run `find_duplicates` in this process; also return the matches by (crystal, split)."""
    found = find_duplicates(
        [s.composition.reduced_formula for s in crystals],
        np.array(splits),
        lambda indices: [crystals[i] for i in indices],
        num_workers=0,
        **options,
    )
    return found, {(s.crystal, s.split): s.match for s in found.searches if s.match is not None}


@pytest.mark.parametrize("settings", [PYMATGEN, CDVAE])
def test_reducing_first_does_not_change_the_result(settings):
    pairs = [
        (ROCKSALT, redescribed(ROCKSALT)),
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


def test_fingerprints_do_not_depend_on_cell_and_volume():
    small = ROCKSALT.copy().scale_lattice(99)
    crystals = (ROCKSALT, redescribed(ROCKSALT), redescribed(small))
    prints = [reduce_crystal(s).fingerprint for s in crystals]
    assert prints[0].shape == (32,)
    assert prints[0][0] == pytest.approx(
        2.8 / (5.6 / 2), rel=1e-6
    )  # (V/N)^(1/3) is half a lattice constant
    np.testing.assert_allclose(prints[1], prints[0], rtol=1e-6)
    np.testing.assert_allclose(prints[2], prints[0], rtol=1e-6)
    assert len(reduce_crystal(redescribed(ROCKSALT)).atom_types) == 2
    assert np.abs(reduce_crystal(CSCL_TYPE).fingerprint - prints[0]).max() > 0.05


def test_within_and_across_splits():
    copy = redescribed(ROCKSALT)
    crystals = [ROCKSALT, CSCL_TYPE, LIF, copy, copy, copy, CSCL_TYPE, rattled(LIF, 0, 1.0)]
    found, matches = search(crystals, [0, 0, 0, 0, 1, 2, 2, 2])
    assert matches == {
        (3, 0): 0,  # within train
        (4, 0): pytest.approx(0, abs=3),  # val in train: 0 or 3, which are equal
        (5, 0): pytest.approx(0, abs=3),
        (5, 1): 4,
        (6, 0): 1,
    }
    assert matches[4, 0] != 1
    assert (found.num_unanswered, found.num_checked, found.not_reduced) == (0, 0, [])
    assert not any(s.is_cut_short for s in found.searches)
    assert max(s.rms for s in found.searches if s.match is not None) < 1e-3


def test_only_duplicates_of_selected_crystals_are_searched():
    crystals = [ROCKSALT] * 4 + [LIF] * 2
    selected = np.array([True, False, True, False, True, False])
    found, matches = search(crystals, [0, 0, 1, 1, 1, 1], selected=selected)
    assert matches.keys() == {(2, 0)}
    assert [s.crystal for s in found.searches] == [2]  # the others have no earlier crystal


def test_nothing_to_compare():
    for crystals in ([], [LIF], [LIF, ROCKSALT]):
        found, matches = search(crystals, [0] * len(crystals))
        assert (matches, found.searches, found.num_comparisons) == ({}, [], 0)


class TestBounded:
    """Distinct crystals of one composition, followed by a copy of one of them."""

    @pytest.fixture(autouse=True)
    def make(self):
        self.crystals = [rattled(ROCKSALT, seed, 0.9) for seed in range(8)]
        self.with_copy = [*self.crystals, redescribed(self.crystals[1])]
        strict = MatcherSettings(
            stol=0.01, ltol=0.01, angle_tol=0.5
        )  # too strict for the rattled crystals to match
        self.search = functools.partial(search, splits=[0] * 8 + [1], settings=strict)

    def test_the_likeliest_is_compared_first(self):
        found, matches = self.search(
            [*self.crystals, redescribed(self.crystals[1])], max_compared=1, max_check=0
        )
        assert matches == {(8, 0): 1}
        assert {len(s.nearest) for s in found.searches} == {1}
        assert found.num_comparisons == 8
        # crystal 1 was compared with its only candidate, and crystal 8 has a match
        assert [s.crystal for s in found.searches if s.is_cut_short] == [2, 3, 4, 5, 6, 7]

    def test_the_check_finds_missed_matches(self, monkeypatch):
        """With misleading fingerprints, the bounded search misses a match that the check finds."""
        direction = np.random.default_rng(0).permutation(32)
        numbers = iter(range(9))

        def with_false_fingerprint(structure, *_):
            cell = reduce_crystal(structure)
            false = 1.0 * direction * next(numbers)
            return type(cell)(cell.lattice, cell.atom_types, cell.frac_coords, false)

        monkeypatch.setattr(duplicates, "reduce_crystal", with_false_fingerprint)
        found, matches = self.search(self.with_copy, max_compared=2, max_check=0)
        assert matches == {}  # the copy was compared only with 7 and 6
        assert sum(s.is_cut_short for s in found.searches) == 6

        numbers = iter(range(9))
        found, matches = self.search(self.with_copy, max_compared=2, max_check=1000)
        assert matches == {(8, 0): 1}
        assert (found.num_checked, found.num_found_by_check) == (6, 1)
        assert not any(s.is_cut_short for s in found.searches)
        # all 28 + 8 pairs, each once
        assert found.num_comparisons == 36

    def test_the_check_stays_within_its_budget(self):
        found, _ = self.search([*self.crystals, self.crystals[0]], max_compared=1, max_check=7)
        assert 0 < found.num_checked < 6
        assert found.num_comparisons <= 8 + 7
        assert sum(s.is_cut_short for s in found.searches) == 6 - found.num_checked


def test_comparisons_without_a_result_are_counted(monkeypatch):
    def match(self, targets, predictions, settings, pairs):
        return [PairResult("timeout", message="no result")] * len(pairs)

    crystals = [ROCKSALT, ROCKSALT, ROCKSALT]
    reduced = [reduce_crystal(s) for s in crystals]
    monkeypatch.setattr(duplicates, "map_structures", lambda *_: reduced)
    monkeypatch.setattr(duplicates.FastMatcher, "match", match)
    found, matches = search(crystals, [0, 0, 1])
    assert matches == {}
    assert (found.num_comparisons, found.num_unanswered) == (3, 3)
    assert [s.num_unanswered for s in found.searches] == [1, 2]

    monkeypatch.setattr(duplicates, "map_structures", lambda *_: [reduced[0], None, reduced[2]])
    found, _ = search(crystals, [0, 0, 1])
    assert found.not_reduced == [1]
    assert found.num_comparisons == 1
