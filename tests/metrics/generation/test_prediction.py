import math
from dataclasses import asdict

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Composition, Lattice, Structure

from src.metrics.generation import prediction
from src.metrics.generation.prediction import Sample, assign, evaluate_prediction
from src.metrics.matching import CDVAE, FastMatcher
from src.utils.errors import UserError

CENTERED = [[0, 0, 0], [0.5, 0.5, 0.5]]
ROCKSALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], CENTERED)
ROCKSALT = ROCKSALT.get_primitive_structure()
CSCL_TYPE = Structure(Lattice.cubic(3.5), ["Na", "Cl"], CENTERED)
LIF = Structure(Lattice.cubic(2.6), ["Li", "F"], CENTERED)
IRON = Structure(Lattice.cubic(2.9), ["Fe", "Fe"], CENTERED)
XENON = Structure(Lattice.cubic(4.5), ["Xe", "Ar"], CENTERED)  # SMACT rejects it


def moved(structure: Structure, by: float) -> Structure:
    other = structure.copy()
    other.translate_sites(1, [0, 0, by], frac_coords=False)
    return other


def named(*structures: Structure | None) -> list[Sample]:
    return [
        Sample(str(i), (s or LIF).composition, s) for i, s in enumerate(structures)
    ]  # None: of LiF


def evaluate(samples, references, **options):
    return evaluate_prediction(named(*samples), references, FastMatcher(0), **options)


def test_samples_go_to_the_crystals_they_were_generated_for():
    references = [Composition(f) for f in ("NaCl", "Na2Cl2", "NaCl", "SiO2", "Fe")]
    rounds = [Composition(f) for f in ("NaCl", "Na2Cl2", "NaCl", "SiO2")] * 2
    assigned, rest = assign([*rounds, Composition("Si3O6"), Composition("KF")], references)
    assert assigned == [[0, 4], [1, 5], [2, 6], [3, 7, 8], []]
    assert rest == [9]


def test_figures_by_hand(caplog):
    """Two samples for each of five crystals, of which two have the same formula."""
    near, nearer = moved(ROCKSALT, 0.4), moved(ROCKSALT, 0.2)
    references = [ROCKSALT, CSCL_TYPE, LIF, XENON, IRON]
    first = [CSCL_TYPE, ROCKSALT, None, XENON]  # each finds the other's; iron has no sample
    second = [near, nearer, LIF, XENON, IRON * [2, 2, 2], None]
    metrics, verdicts = evaluate([*first, *second], references)
    rms = [StructureMatcher(**asdict(CDVAE)).get_rms_dist(each, ROCKSALT)[0] for each in (near,)]
    assert [len(verdict.samples) for verdict in verdicts] == [2, 2, 3, 2, 1]
    assert metrics["k"] == 3
    assert metrics["match_at_1"] == 2 / 5  # xenon, and iron, by its formula
    assert metrics["match_at_1_valid"] == 1 / 5
    assert metrics["rmse_at_1"] == pytest.approx(0, abs=1e-9)
    assert metrics["crmse_at_1"] == pytest.approx(0.5 * 3 / 5)
    assert metrics["match_at_3"] == 4 / 5  # all but the caesium chloride
    assert metrics["match_at_3_valid"] == 3 / 5
    assert metrics["rmse_at_3"] == pytest.approx(rms[0] / 4)
    assert metrics["crmse_at_3"] == pytest.approx((rms[0] + 0.5) / 5)
    assert metrics["metre"] == 4 / 5  # all but LiF
    assert metrics["metre_crmse"] == pytest.approx(0.5 / 5, abs=1e-9)
    assert metrics["valid_composition"] == 8 / 10
    assert (metrics["num_with_fewer"], metrics["num_not_built"]) == (4, 2)
    low, high = metrics["match_at_1_interval"]
    assert low < 2 / 5 < high
    (row,) = metrics["by_num_atoms"]
    assert (row["num_atoms"], row["crystals"], row["match_at_3"]) == (2, 5, 4 / 5)
    assert not caplog.text


def test_polymorphs_count_once_on_request(caplog):
    samples = [ROCKSALT, moved(ROCKSALT, 0.2), LIF]
    each, _ = evaluate(samples, [CSCL_TYPE, ROCKSALT, LIF, IRON])
    once, _ = evaluate(samples, [CSCL_TYPE, ROCKSALT, LIF, IRON], polymorphs="once", k=1)
    assert (each["num_counted"], each["match_at_1"]) == (4, 2 / 4)
    assert (once["num_counted"], once["match_at_1"]) == (3, 2 / 3)
    assert once["rmse_at_1"] == pytest.approx(0, abs=1e-9)
    assert "1 of 4 reference crystals have no sample and count as not matched: Fe2" in caplog.text
    assert each["num_without_sample"] == 1


def test_samples_of_other_compositions_are_named(caplog):
    metrics, _ = evaluate([LIF, IRON, IRON], [LIF])
    assert "2 samples have the composition of no reference crystal and are left out: Fe2" in (
        caplog.text
    )
    assert (metrics["match_at_1"], metrics["num_unassigned"], metrics["k"]) == (1, 2, 1)


def test_nothing_matches():
    metrics, verdicts = evaluate([CSCL_TYPE], [ROCKSALT])
    assert (metrics["match_at_1"], metrics["metre"]) == (0, 0)
    assert metrics["rmse_at_1"] is metrics["rmse_at_1_interval"] is None
    assert metrics["crmse_at_1"] == 0.5
    assert math.isinf(verdicts[0].best(1))


def test_metre_is_left_out_where_it_takes_too_long(monkeypatch, caplog):
    monkeypatch.setitem(prediction.MAX_METRE_PAIRS, "fast", 1)
    metrics, _ = evaluate([ROCKSALT, CSCL_TYPE], [ROCKSALT, CSCL_TYPE])
    assert metrics["metre"] is metrics["metre_crmse"] is metrics["metre_interval"] is None
    assert "METRe is left out: it would take 4 comparisons" in caplog.text
    assert metrics["match_at_1"] == 1


def test_it_agrees_with_pymatgen_pair_by_pair():
    rng = np.random.default_rng(0)
    kinds = [ROCKSALT, CSCL_TYPE, LIF]
    references = [kinds[i % 3] for i in range(9)]
    samples = [moved(s, rng.uniform(0, 2)) for s in references * 2]
    samples[0], samples[9:11] = CSCL_TYPE, [CSCL_TYPE, ROCKSALT]
    metrics, _ = evaluate(samples, references)
    matcher = StructureMatcher(**asdict(CDVAE))
    rms = [matcher.get_rms_dist(s, r) for s, r in zip(samples, references * 2, strict=True)]
    one = np.array([math.inf if found is None else found[0] for found in rms]).reshape(2, 9)
    best = one.min(axis=0)
    assert 0 < metrics["match_at_1"] == np.isfinite(one[0]).mean() < 1
    assert metrics["match_at_2"] == np.isfinite(best).mean()
    assert metrics["rmse_at_2"] == pytest.approx(best[np.isfinite(best)].mean())


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        ([IRON], {}, "none of the 1 samples has the composition of one of the 1 reference"),
        ([LIF], {"k": 0}, "k must be at least 1, not 0"),
        ([LIF], {"polymorphs": "all"}, "polymorphs must be each or once, not 'all'"),
    ],
)
def test_bad_input(samples, options, message):
    with pytest.raises(UserError, match=message):
        evaluate(samples, [LIF], **options)
