import functools
import sys
from itertools import permutations

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from scipy.spatial.distance import cdist

pytest.importorskip("matminer")

from src.metrics.generation import fingerprint_distances
from src.metrics.generation.distributions import DISTANCES
from src.metrics.generation.evaluate import (
    CoverageCutoffs,
    amd_distances,
    connected_groups,
    coverage,
    evaluate_generated,
    first_matches,
    wasserstein_distances,
)
from src.metrics.generation.fingerprints import Fingerprint, compute_fingerprints, fingerprint
from src.metrics.matching import CDVAE, PYMATGEN, FastMatcher, MatcherPool


def cubic(edge: float, *species: str) -> Structure:
    """A simple cubic crystal of one element, or a CsCl-type crystal of two."""
    return Structure(Lattice.cubic(edge), species, [[0, 0, 0], [0.5, 0.5, 0.5]][: len(species)])


def redescribed(structure: Structure) -> Structure:
    """The same crystal with a sheared and doubled cell, another origin and reversed atoms."""
    other = structure * [[1, 1, 0], [0, 1, 0], [0, 0, 2]]
    other.translate_sites(range(len(other)), [0.1, 0.2, 0.3])
    return Structure.from_sites(other[::-1])


CSCL, LIF, NACL2 = cubic(4.1, "Cs", "Cl"), cubic(2.6, "Li", "F"), cubic(4.0, "Na", "Cl")
NACL2.append("Cl", [0.5, 0, 0])  # not neutral
LINE = Structure(Lattice.orthorhombic(2.6, 7.0, 7.0), ["Li", "F"], [[0, 0, 0], [0.5, 0, 0]])
CLASH = Structure(Lattice.cubic(4.0), ["Cs", "Cl"], [[0, 0, 0], [0.1, 0, 0]])


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Avoid worker processes, which take seconds to start; test_fingerprints.py covers them."""
    here = functools.partial(evaluate_generated, num_workers=0)
    monkeypatch.setattr(sys.modules[__name__], "evaluate_generated", here)


class TestEvaluate:
    def test_evaluating_the_reference_itself(self):
        crystals = [CSCL, LIF, LINE, cubic(3.0, "Fe")]
        metrics, verdicts = evaluate_generated(crystals, crystals)
        ones = ("valid_structure", "valid_composition", "valid", "unique")
        assert {metrics[name] for name in (*ones, "cov_recall", "cov_precision")} == {1.0}
        zeros = ("novel", "unique_and_novel", "valid_unique_and_novel", "wdist_density")
        more = ("wdist_num_elements", "wdist_num_atoms")
        assert {metrics[name] for name in (*zeros, *more)} == {0.0}
        assert metrics["num_generated"] == metrics["num_reference"] == 4
        assert metrics["matcher"] == "fast"
        assert metrics["tolerances"] == {"stol": 0.3, "ltol": 0.2, "angle_tol": 5.0}
        assert metrics["cutoffs"] == {"structure": 0.4, "composition": 10.0}
        assert [verdict.known_as for verdict in verdicts] == [0, 1, 2, 3]

    def test_amd_distances_to_the_reference_itself(self):
        crystals = [CSCL, LIF, LINE, cubic(3.0, "Fe")]
        metrics, _ = evaluate_generated(crystals, crystals)
        assert metrics["amd_precision"] == metrics["amd_recall"] == 0
        assert metrics["amd_diversity"] == metrics["amd_diversity_reference"] > 0

    def test_duplicates_and_known_crystals(self):
        generated = [CSCL, LIF, redescribed(CSCL), CLASH, NACL2, redescribed(LIF), CSCL]
        reference = [CLASH, LINE, redescribed(LIF)]
        metrics, verdicts = evaluate_generated(generated, reference)
        assert [v.duplicate_of for v in verdicts] == [None, None, 0, None, None, 1, 0]
        assert [v.known_as for v in verdicts] == [None, 2, None, None, None, 2, None]
        assert [v.valid_structure for v in verdicts] == [True] * 3 + [False] + [True] * 3
        assert [v.valid_composition for v in verdicts] == [True] * 4 + [False] + [True] * 2
        assert not verdicts[3].unique
        assert not verdicts[3].novel
        assert "0.400 Å apart" in verdicts[3].reason
        assert metrics["valid"] == 5 / 7
        assert metrics["unique"] == 3 / 6  # CSCL, LIF, NACL2
        assert metrics["novel"] == 4 / 6
        assert metrics["unique_and_novel"] == 2 / 6  # CSCL, NACL2
        assert metrics["valid_unique_and_novel"] == 1 / 7
        assert metrics["num_reference"] == 2  # not CLASH
        assert metrics["valid_structure_reference"] == 2 / 3

    def test_kinds_of_novelty(self):
        """Of a known crystal, a known formula, a known prototype, and nothing known."""
        swapped = cubic(4.0, "Rb", "I")
        generated = [LIF, LINE, swapped, NACL2, CLASH]
        metrics, verdicts = evaluate_generated(generated, [LIF])
        assert metrics["novel"] == 3 / 4
        assert metrics["novel_composition"] == 2 / 4
        assert metrics["novel_structure"] == 1 / 4
        assert metrics["novel_prototype"] == 2 / 4
        assert [v.known_composition for v in verdicts] == [True, True, False, False, False]
        assert [v.known_prototype for v in verdicts] == [True, False, True, False, None]
        without, _ = evaluate_generated(generated, [LIF], prototypes=False)
        assert without["novel_prototype"] is without["novel_prototype_interval"] is None

    def test_each_share_has_an_interval(self):
        metrics, _ = evaluate_generated([CSCL, LIF, LINE, CLASH, NACL2], [CSCL, LIF])
        shares = ("valid", "novel", "too_close", "cov_recall", "valid_composition_reference")
        for name in shares:
            low, high = metrics[f"{name}_interval"]
            assert 0 <= low <= metrics[name] <= high <= 1
        assert metrics["valid_interval"][0] < metrics["valid"] < metrics["valid_interval"][1]
        settings = {"fingerprint_failures", "match_timeouts", "reference_fingerprint_failures"}
        settings |= {
            name for name in metrics if name.startswith(("num_", "wdist_", "tvd_", "amd_"))
        }
        settings |= {"closest_quantiles", "floor", "floor_size", "matcher", "tolerances", "cutoffs"}
        figures = {name for name in metrics if not name.endswith("_interval")} - settings
        assert {f"{name}_interval" for name in figures - {"smact_version"}} <= set(metrics)

    def test_the_floor_is_the_distance_of_real_crystals(self):
        metrics, _ = evaluate_generated([CSCL, LIF], [CSCL, LIF, LINE], [CSCL, LIF], seed=1)
        assert metrics["floor_size"] == 2
        assert set(metrics["floor"]) == set(DISTANCES)
        assert metrics["wdist_lengths"] == 0
        same, _ = evaluate_generated([CSCL], [CSCL, LIF])
        assert same["floor"] is None

    def test_novelty_and_distributions_use_separate_references(self):
        metrics, _ = evaluate_generated([CSCL], [CSCL], [LIF, LINE])
        assert metrics["novel"] == 0
        assert metrics["num_test_reference"] == 2
        assert metrics["wdist_density"] == pytest.approx(
            abs(2 * CSCL.density - LIF.density - LINE.density) / 2
        )

    def test_oxidation_states_are_ignored(self):
        ionic = CSCL.copy()
        ionic.add_oxidation_state_by_element({"Cs": 1, "Cl": -1})
        metrics, _ = evaluate_generated([ionic, CSCL], [LIF])
        assert metrics["unique"] == 0.5

    def test_a_crystal_without_fingerprint_is_invalid(self, monkeypatch):
        def fails(structure, *_):
            if structure.composition.reduced_formula == "LiF":
                raise RuntimeError("no Voronoi cell")
            return fingerprint(structure)

        monkeypatch.setattr(
            "src.metrics.generation.fingerprints.compute_fingerprints",
            functools.partial(compute_fingerprints, function=fails),
        )
        metrics, verdicts = evaluate_generated([CSCL, LIF], [CSCL, LIF, LINE])
        assert metrics["valid_structure"] == metrics["valid"] == metrics["cov_precision"] == 0.5
        assert metrics["cov_recall"] == 1.0  # of the one reference crystal that has a fingerprint
        assert metrics["fingerprint_failures"] == 1
        assert metrics["reference_fingerprint_failures"] == 2
        assert verdicts[1].reason == "no fingerprint: RuntimeError: no Voronoi cell"

    def test_fingerprints_can_be_left_out(self, monkeypatch):
        """The other figures stay the same."""
        sets = ([CSCL, LIF, LIF, CLASH], [LIF, LINE], [CSCL, LINE])
        whole, verdicts = evaluate_generated(*sets)
        monkeypatch.setattr("src.metrics.generation.judging.load_fingerprints", None)
        metrics, same = evaluate_generated(*sets, fingerprints=False)
        assert same == verdicts
        missing = {name for name in metrics if metrics[name] is None and whole[name] is not None}
        assert {name for name in missing if not name.endswith("_interval")} == {
            "cov_recall", "cov_precision", "fingerprint_failures",
            "reference_fingerprint_failures", *fingerprint_distances.AMD_DISTANCES,
        }  # fmt: skip
        assert {k: metrics[k] for k in metrics.keys() - missing} == {
            k: whole[k] for k in metrics.keys() - missing
        }

    def test_no_valid_crystals(self, caplog):
        metrics, verdicts = evaluate_generated([CLASH, CLASH], [CSCL, LIF])
        assert metrics["valid_structure"] == metrics["cov_recall"] == metrics["cov_precision"] == 0
        for name in ("unique", "novel", "unique_and_novel", "wdist_density", "amd_precision"):
            assert metrics[name] is None
        assert metrics["valid_unique_and_novel"] == 0
        assert [v.duplicate_of for v in verdicts] == [None, None]
        assert "No generated crystal is structurally valid" in caplog.text

    def test_empty_sets_are_refused(self):
        with pytest.raises(ValueError, match="no generated crystals"):
            evaluate_generated([], [CSCL])
        with pytest.raises(ValueError, match="no valid crystals in the training reference"):
            evaluate_generated([CSCL], [CLASH])

    def test_without_matminer(self, monkeypatch):
        monkeypatch.delattr("src.metrics.generation.fingerprints")
        monkeypatch.setitem(sys.modules, "src.metrics.generation.fingerprints", None)
        with pytest.raises(ImportError, match=r"pip install -e '\.\[generation\]'"):
            evaluate_generated([CSCL], [CSCL])

    def test_inputs_are_not_modified(self):
        generated, reference = [CSCL.copy(), LIF.copy()], [LIF.copy()]
        evaluate_generated(generated, reference)
        assert generated == [CSCL, LIF]
        assert reference == [LIF]


class TestMatches:
    def test_uniqueness_agrees_with_pymatgen(self):
        rng = np.random.default_rng(0)
        crystals = []
        for kind in (CSCL, LINE, LIF, NACL2):
            for amplitude in (0.0, 0.2, 0.4, 0.6, 0.8):
                crystals.append(kind.copy())
                for site in range(len(kind)):
                    moved = rng.normal(size=3) * amplitude / np.sqrt(3)
                    crystals[-1].translate_sites(site, moved, frac_coords=False)
        crystals = [crystals[i] for i in rng.permutation(len(crystals))]
        matches, unanswered = first_matches(crystals, None, FastMatcher(), PYMATGEN)
        with MatcherPool(0) as pool:
            assert first_matches(crystals, None, pool, PYMATGEN) == (matches, unanswered)
        groups = StructureMatcher().group_structures(crystals)
        assert 4 < matches.count(None) == len(groups) < 20
        assert not unanswered
        for index, match in enumerate(matches):
            assert match is None or (match < index and matches[match] is None)

    def test_groups_do_not_depend_on_the_order(self):
        """A chain in which only neighbors match."""
        chain = [CSCL.copy() for _ in range(3)]
        for step, crystal in enumerate(chain):
            crystal.translate_sites(1, [0.0, 0.0, 0.245 * step])
        others = [LIF, CSCL.copy()]
        others[1].scale_lattice(2 * CSCL.volume)  # the same crystal: the volume is ignored
        for matcher in (FastMatcher(), MatcherPool(0)):
            sizes = set()
            for order in permutations(range(3)):
                crystals = [chain[i] for i in order]
                duplicates, _ = first_matches(crystals, None, matcher, PYMATGEN)
                sizes.add(duplicates.count(None))
                groups = connected_groups(crystals, ["CsCl"] * 3, matcher, PYMATGEN, duplicates)
                assert groups == [0, 0, 0]
            assert sizes == {1, 2}
            found = connected_groups([LIF, CSCL, others[1]], ["LiF", "CsCl", "CsCl"], matcher)
            assert found == [0, 1, 1]

    def test_too_many_pairs_are_not_compared(self, monkeypatch):
        monkeypatch.setattr("src.metrics.generation.matches.MAX_GROUP_PAIRS", 1)
        assert connected_groups([CSCL, CSCL], ["CsCl"] * 2, FastMatcher()) is None

    def test_tolerances_are_used(self):
        moved = CSCL.copy()
        moved.translate_sites(1, [0.3, 0.3, 0.3])  # rms 0.33
        for matcher in (FastMatcher(), MatcherPool(0)):
            assert first_matches([CSCL, moved], None, matcher, PYMATGEN)[0] == [None, None]
            assert first_matches([CSCL, moved], None, matcher, CDVAE)[0] == [None, 0]

    def test_pairs_without_a_result_are_counted(self):
        def fails(prediction, target, settings):
            raise RuntimeError

        with MatcherPool(0, matcher=fails) as pool:
            assert first_matches([CSCL, LIF], [LIF, LINE, LIF], pool) == ([None, None], {1: 3})
            assert first_matches([LIF, CSCL, LIF], None, pool) == ([None] * 3, {2: 1})


def point(structure: float, composition: float) -> Fingerprint:
    """A fingerprint with one structure coordinate and one composition coordinate."""
    return Fingerprint(np.array([structure, 0.0]), np.array([0.0, composition]), None)


class TestCoverage:
    # The standard deviation of the composition coordinate is 4.
    REFERENCE = (point(0.0, 0.0), point(1.0, 8.0))

    def test_by_hand(self):
        generated = [point(0.2, 2.0), point(0.2, 3.0), point(0.3, 0.0)]
        assert coverage(generated, self.REFERENCE, CoverageCutoffs(0.2, 0.5)) == {
            "cov_recall": 1 / 2,
            "cov_precision": 1 / 3,
        }

    def test_structure_and_composition_may_be_near_different_crystals(self):
        generated = [point(0.0, 8.0)]
        assert coverage(generated, self.REFERENCE, CoverageCutoffs(0.1, 0.1))["cov_precision"] == 1
        assert coverage(generated, self.REFERENCE, CoverageCutoffs(0.1, 0.1))["cov_recall"] == 0

    def test_crystals_without_fingerprint_lower_the_precision(self):
        figures = coverage(self.REFERENCE, self.REFERENCE, CoverageCutoffs(0.1, 0.1), 8)
        assert figures == {"cov_recall": 1.0, "cov_precision": 0.25}

    def test_compositions_are_standardized_by_the_scale(self):
        generated, cutoffs = [point(0.0, 2.0)], CoverageCutoffs(0.1, 0.1)
        assert coverage(generated, self.REFERENCE, cutoffs)["cov_precision"] == 0
        scale = [np.array([0.0, x]) for x in (0.0, 80.0)]
        assert coverage(generated, self.REFERENCE, cutoffs, scale=scale)["cov_precision"] == 1

    def test_empty_sets(self, caplog):
        cutoffs = CoverageCutoffs(0.1, 0.1)
        assert set(coverage([], self.REFERENCE, cutoffs).values()) == {0.0}
        assert set(coverage(self.REFERENCE, [], cutoffs).values()) == {None}
        assert "coverage is null" in caplog.text

    def test_distances_are_computed_in_parts(self, monkeypatch):
        rng = np.random.default_rng(0)
        rows, columns = rng.random((23, 3)), rng.random((17, 3))
        monkeypatch.setattr(fingerprint_distances, "_MAX_DISTANCES", 40)
        expected = cdist(rows, columns, "chebyshev")
        of_rows, of_columns = fingerprint_distances._nearest(rows, columns, metric="chebyshev")
        assert of_rows == pytest.approx(expected.min(axis=1))
        assert of_columns == pytest.approx(expected.min(axis=0))


def test_wasserstein_distances():
    light, heavy = cubic(4.0, "Li"), cubic(4.0, "Cs", "Cl")
    figures = wasserstein_distances([light, light], [light, heavy])
    assert figures["wdist_num_elements"] == figures["wdist_num_atoms"] == 0.5
    # convert g/mol to g and Å^3 to cm^3
    densities = [mass / 6.02214076e23 / 64e-24 for mass in (6.94, 132.905 + 35.45)]
    assert figures["wdist_density"] == pytest.approx((densities[1] - densities[0]) / 2, rel=1e-3)
    assert set(wasserstein_distances([], [light]).values()) == {None}


def test_amd_distances():
    # In a simple cubic crystal, 92 neighbors are closer than 3 lattice constants and the next 30
    # are at exactly 3, so the Chebyshev distance is 3 times the difference in lattice constants.
    edges = (3.0, 3.5, 4.0, 5.0)
    found = compute_fingerprints([cubic(edge, "Po") for edge in edges], num_workers=0)
    of_edge = dict(zip(edges, found, strict=True))
    figures = amd_distances(
        [of_edge[3.0], of_edge[4.0]], [of_edge[3.5], of_edge[4.0], of_edge[5.0]]
    )
    assert figures == pytest.approx(
        {
            "amd_precision": (1.5 + 0) / 2,
            "amd_recall": (1.5 + 0 + 3) / 3,
            "amd_diversity": 3.0,
            "amd_diversity_reference": (1.5 + 3.0 + 4.5) / 3,
        }
    )
    assert set(amd_distances([of_edge[3.0]], [of_edge[3.0]] * 2).values()) == {None}
