import dataclasses

import numpy as np
import pandas as pd
import pytest
from ase.data import covalent_radii
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from src.data.cif import read_cif
from src.data.structures import to_structure
from src.metrics.generation.descriptors import describe
from src.metrics.generation.distributions import (
    DISTANCES,
    distances,
    plausibility,
    total_variation,
)
from src.metrics.generation.prototypes import anonymized, has_known_prototype
from src.metrics.matching import FastMatcher

CENTERED = [[0, 0, 0], [0.5, 0.5, 0.5]]
CSCL = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], CENTERED)
LIF = Structure(Lattice.cubic(2.6), ["Li", "F"], CENTERED)
PEROVSKITE = Structure(
    Lattice.cubic(3.9), ["Sr", "Ti", "O", "O", "O"],
    [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
)  # fmt: skip


def random_crystals(count: int) -> list[Structure]:
    rng = np.random.default_rng(0)
    return [
        Structure(Lattice(rng.normal(size=(3, 3)) * 4), rng.integers(1, 40, n), rng.random((n, 3)))
        for n in rng.integers(1, 6, count)
    ]


def matches_anonymously(crystal: Structure, references: list[Structure]) -> bool:
    matcher = StructureMatcher()
    return any(matcher.get_rms_anonymous(crystal, each)[0] is not None for each in references)


def test_descriptors_by_hand():
    found = describe([CSCL, PEROVSKITE * [[1, 1, 0], [0, 1, 0], [0, 0, 2]]])
    assert found.space_group.tolist() == [221, 221]
    assert found.num_atoms.tolist() == [2, 10]
    assert found.num_elements.tolist() == [2, 3]
    assert found.lengths == pytest.approx(np.array([[4.1] * 3, [3.9, 3.9, 7.8]]))
    assert found.angles == pytest.approx(np.full((2, 3), 90.0))
    assert found.volume_per_atom == pytest.approx([4.1**3 / 2, 3.9**3 / 5])
    assert found.density[0] == CSCL.density
    assert found.closest[0] == pytest.approx(4.1 / (2 * covalent_radii[55]))  # two of caesium
    assert found.elements[1][[8, 22, 38]].tolist() == [6, 2, 2]
    assert not found.isolated.any()
    assert len(found.part([1])) == 1


def test_the_closest_atoms_are_those_that_pymatgen_finds():
    crystals = random_crystals(20)
    found = describe(crystals)
    for crystal, closest, isolated in zip(crystals, found.closest, found.isolated, strict=True):
        first, second, _, lengths = crystal.get_neighbor_list(9.0)
        radii = covalent_radii[np.array(crystal.atomic_numbers)]
        ratios = lengths / (radii[first] + radii[second])
        assert closest == pytest.approx(ratios.min())
        of_atoms = [ratios[first == i].min(initial=np.inf) for i in range(len(crystal))]
        assert isolated == (max(of_atoms) > 1.5)
    assert 0 < found.isolated.sum() < 20


def test_distances():
    ours, theirs = describe([CSCL, CSCL]), describe([CSCL, LIF])
    assert set(distances(ours, ours).values()) == {0.0}
    found = distances(ours, theirs)
    assert tuple(found) == DISTANCES
    assert found["wdist_lengths"] == pytest.approx(1.5 / 2)
    assert found["wdist_volume_per_atom"] == pytest.approx((4.1**3 - 2.6**3) / 4)
    assert found["wdist_density"] == pytest.approx(abs(CSCL.density - LIF.density) / 2)
    assert found["tvd_elements"] == 0.5
    assert (found["tvd_space_groups"], found["wdist_angles"]) == (0, pytest.approx(0))
    assert set(distances(describe([]), theirs).values()) == {None}
    assert total_variation(np.array([1, 0]), np.array([0, 5])) == 1


def test_plausibility():
    dense = Structure(Lattice.cubic(2.6), ["Cs", "Cl"], CENTERED)
    vast = Structure(Lattice.cubic(30), ["Cs", "Cl"], CENTERED)
    figures = plausibility(describe([CSCL, dense, vast, LIF]), describe([CSCL, LIF]))
    assert (figures["too_close"], figures["isolated"]) == (1 / 4, 1 / 4)
    assert figures["too_close_reference"] == figures["isolated_reference"] == 0
    assert (figures["density_outside"], figures["volume_per_atom_outside"]) == (2 / 4, 1 / 4)
    assert list(figures["closest_quantiles"].values()) == sorted(
        figures["closest_quantiles"].values()
    )
    empty = plausibility(describe([]), describe([CSCL]))
    assert (empty["too_close"], empty["closest_quantiles"]) == (None, {})


def test_prototypes_agree_with_pymatgen():
    other = PEROVSKITE.copy()
    other.replace_species({"Sr": "Ti", "Ti": "Sr"})
    other.replace_species({"O": "F"})
    shifted = PEROVSKITE.copy()
    shifted.translate_sites(1, [0, 0, 0.3])
    rng = np.random.default_rng(1)
    random = Structure(Lattice.cubic(4.0), ["K", "Br", "S", "S", "S"], rng.random((5, 3)))
    crystals = [LIF, other, shifted, random, CSCL * [2, 1, 1]]
    references = [CSCL, PEROVSKITE]
    found = has_known_prototype(crystals, references, FastMatcher(0))
    assert found == [matches_anonymously(crystal, references) for crystal in crystals]
    assert found == [True, True, True, False, True]
    assert has_known_prototype([], references, FastMatcher(0)) == []
    assert sum(1 for _ in anonymized(PEROVSKITE)) == 2


@pytest.mark.slow
def test_prototypes_agree_with_pymatgen_on_real_crystals(shared_data):
    texts = pd.read_csv(shared_data / "mp_20" / "test.csv.gz", nrows=120)["cif"]
    crystals = [to_structure(read_cif(text)) for text in texts]
    found = has_known_prototype(crystals[:40], crystals[40:], FastMatcher(0))
    assert found == [matches_anonymously(crystal, crystals[40:]) for crystal in crystals[:40]]
    assert 0 < sum(found) < 40


def test_inputs_stay_as_they_are():
    before = CSCL.copy()
    first, second = describe([CSCL]), describe([CSCL])
    next(anonymized(CSCL))
    assert before == CSCL
    for field in dataclasses.fields(first):
        assert np.array_equal(getattr(first, field.name), getattr(second, field.name))
