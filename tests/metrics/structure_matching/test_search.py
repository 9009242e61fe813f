from dataclasses import asdict

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.core.structure_matcher import StructureMatcher

from src.metrics.structure_matching.reduction import niggli_cells, primitive_cells
from src.metrics.structure_matching.search import Tolerances, search, warm_up
from src.metrics.structure_matching.settings import CDVAE, PYMATGEN, UNREDUCED
from tests.metrics.structure_matching.conftest import (
    DIAMOND,
    PEROVSKITE,
    QUARTZ,
    WURTZITE,
    cell_of,
    shaken,
)

SETTINGS = {"cdvae": CDVAE, "pymatgen": PYMATGEN, "unreduced": UNREDUCED}


@pytest.fixture(params=["numpy", "numba"])
def compiled(request) -> bool:
    if request.param == "numba":
        pytest.importorskip("numba")
    return request.param == "numba"


def reduced(crystals, settings):
    cells = niggli_cells([cell_of(crystal) for crystal in crystals])
    return primitive_cells(cells) if settings.primitive_cell else cells


def ours(pairs, settings, compiled, goal="rms"):
    first, second = (reduced([pair[k] for pair in pairs], settings) for k in (0, 1))
    tolerances = Tolerances(**asdict(settings))
    return search(list(zip(first, second, strict=True)), tolerances, goal=goal, compiled=compiled)


def stock(settings) -> StructureMatcher:
    return StructureMatcher(**asdict(settings), primitive_cell=settings.primitive_cell)


@pytest.fixture(scope="module")
def expected(pairs) -> dict[str, list[float | None]]:
    """What pymatgen says to the pairs in turn as they are and swapped, by settings."""
    found: dict[str, list[float | None]] = {}
    for name, settings in SETTINGS.items():
        matcher = stock(settings)
        found[name] = []
        for k, (a, b) in enumerate(pairs):
            StructureMatcher._get_reduced_istructure.cache_clear()
            result = matcher.get_rms_dist(*((a, b) if k % 2 else (b, a)))
            found[name].append(None if result is None else float(result[0]))
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_verdict_and_rms_are_pymatgen_s(pairs, expected, name, compiled):
    in_turn = [(a, b) if k % 2 else (b, a) for k, (a, b) in enumerate(pairs)]
    found = [outcome.rms for outcome in ours(in_turn, SETTINGS[name], compiled)]
    assert [rms is None for rms in found] == [rms is None for rms in expected[name]]
    matched = [k for k, rms in enumerate(found) if rms is not None]
    np.testing.assert_allclose(
        [found[k] for k in matched], [expected[name][k] for k in matched], atol=1e-6, rtol=0
    )
    assert 0.4 * len(pairs) < len(matched) < len(pairs) - 8
    verdicts = ours(in_turn, SETTINGS[name], compiled, "verdict")
    assert [outcome.matched for outcome in verdicts] == [rms is not None for rms in expected[name]]


def test_fit_is_pymatgen_s(pairs, compiled):
    settings = PYMATGEN
    some = pairs[1::3] + pairs[-11:]
    found = [outcome.matched for outcome in ours(some, settings, compiled, "fit")]
    assert found == [stock(settings).fit(*pair) for pair in some]
    assert 0 < sum(found) < len(found)


def test_one_pair_at_a_time_is_as_many_at_once(pairs, compiled):
    some = pairs[::9]
    together = ours(some, CDVAE, compiled)
    alone = [ours([pair], CDVAE, compiled)[0] for pair in some]
    for a, b in zip(together, alone, strict=True):
        assert a.work == b.work
        assert a.rms == pytest.approx(b.rms, abs=1e-12)


def test_an_atom_halfway_between_two_partners(compiled):
    """The nearest partner and the nearest image are ties, which the order of operations decides."""
    crystals = [PEROVSKITE, QUARTZ, DIAMOND, WURTZITE]
    pairs = []
    for crystal in crystals:
        for shift in ([0.5, 0, 0], [0.5, 0.5, 0], [0.25, 0.25, 0.25]):
            moved = crystal.copy()
            moved.translate_sites([len(moved) - 1], shift)
            pairs.append((moved, crystal))
    for name, settings in SETTINGS.items():
        matcher = stock(settings)
        results = [matcher.get_rms_dist(*pair) for pair in pairs]
        found = [outcome.rms for outcome in ours(pairs, settings, compiled)]
        for result, rms in zip(results, found, strict=True):
            assert (result is None) == (rms is None), name
            assert result is None or rms == pytest.approx(result[0], abs=1e-6)


def test_choices_that_are_as_good_because_three_atoms_can_change_places(compiled):
    """The same prototype with two elements exchanged; no two atoms can change places at no cost."""
    cells = [Lattice.tetragonal(4.3743, 7.0652), Lattice.tetragonal(3.7727, 6.0936)]
    boron = [[0.5, 0.5, 0], [0, 0.5, 0.312], [0, 0.5, 0.688], [0.5, 0, 0.688], [0.5, 0, 0.312]]
    first, second = (
        Structure(cell, [*ends[:1], *5 * ["B"], *ends[1:]], [[0, 0, 0], *boron, [0, 0, 0.5]])
        for cell, ends in zip(cells, (["Rh", "Eu"], ["Eu", "Rh"]), strict=True)
    )
    (outcome,) = ours([(first, second)], CDVAE, compiled)
    assert outcome.rms == pytest.approx(stock(CDVAE).get_rms_dist(first, second)[0], abs=1e-6)
    assert outcome.rms == pytest.approx(0.464722, abs=1e-6)


def test_work_over_the_limit_is_not_begun(compiled):
    cells = reduced([DIAMOND * [2, 2, 1], PEROVSKITE, shaken(DIAMOND, 0.2, 0)], UNREDUCED)
    tolerances = Tolerances(**asdict(UNREDUCED))
    pairs = [(cells[0], cells[0]), (cells[1], cells[1]), (cells[2], cells[2])]
    free = search(pairs, tolerances, compiled=compiled)
    limit = free[1].work
    assert free[0].work > limit
    found = search(pairs, tolerances, limit, compiled=compiled)
    assert [outcome.complete for outcome in found] == [o.work <= limit for o in free]
    assert found[0].rms is None
    assert found[0].work == free[0].work
    assert found[1] == free[1]


def test_a_cell_like_a_needle_is_not_begun():
    needle = Structure(np.diag([2.5, 2.5, 400.0]), ["Fe"], [[0, 0, 0]])
    cells = niggli_cells([cell_of(needle)])
    tolerances = Tolerances(**asdict(CDVAE))
    found, other = search([(cells[0], cells[0]), 2 * (cell_of(PEROVSKITE),)], tolerances)
    assert not found.complete
    assert found.work > 1e5
    assert other.rms == pytest.approx(0, abs=1e-9)


def test_many_atoms_of_one_kind_need_an_assignment(compiled):
    supercell = DIAMOND * [2, 1, 1]
    pairs = [(shaken(supercell, 0.15, seed), shaken(supercell, 0.1, 9)) for seed in range(3)]
    matcher = stock(UNREDUCED)
    for pair, outcome in zip(pairs, ours(pairs, UNREDUCED, compiled), strict=True):
        result = matcher.get_rms_dist(*pair)
        assert (result is None) == (outcome.rms is None)
        assert result is None or outcome.rms == pytest.approx(result[0], abs=1e-6)


def test_after_warming_up_nothing_is_compiled():
    kernel = pytest.importorskip("src.metrics.structure_matching.kernel")
    warm_up()
    (signature,) = kernel.evaluate.signatures
    found = search([2 * (reduced([QUARTZ], CDVAE)[0],)], Tolerances(**asdict(CDVAE)))
    assert found[0].matched
    assert kernel.evaluate.signatures == [signature]


def test_nothing_to_match(compiled):
    tolerances = Tolerances(**asdict(CDVAE))
    assert search([], tolerances, compiled=compiled) == []
    other = Structure(PEROVSKITE.lattice, ["Ba", *PEROVSKITE.species[1:]], PEROVSKITE.frac_coords)
    a, b = reduced([PEROVSKITE, other], CDVAE)
    assert [o.matched for o in search([(a, b)], tolerances, compiled=compiled)] == [False]
