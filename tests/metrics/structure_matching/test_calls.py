import logging
import math
import subprocess
import sys

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.ase import AseAtomsAdaptor

from src.data.schema import CrystalBatch
from src.metrics import FirstMatch, PreparedCrystals, first_match, match, match_matrix
from src.metrics.matching import CDVAE, PYMATGEN, UNREDUCED, MatcherPool
from src.metrics.structure_matching import crystals as crystals_module
from src.metrics.structure_matching import judging
from tests.conftest import ROOT
from tests.metrics.structure_matching.conftest import (
    BLENDE,
    DIAMOND,
    QUARTZ,
    WURTZITE,
    shaken,
)

NACL = Structure(Lattice.cubic(4.0), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
FLAT = Structure(np.diag([4, 4, 0.0]), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_match_gives_what_the_pool_gives(prototypes):
    targets = prototypes[:8]
    predictions = [shaken(crystal, 0.1, k) for k, crystal in enumerate(targets)]
    predictions[3] = None
    found = match(predictions, targets, [CDVAE, UNREDUCED])
    with MatcherPool(0) as pool:
        expected = pool.match(targets, predictions, [CDVAE, UNREDUCED])
    for ours, theirs in zip(found, expected, strict=True):
        assert [r.status for r in ours] == [r.status for r in theirs]
        for a, b in zip(ours, theirs, strict=True):
            assert a.rms == pytest.approx(b.rms, abs=1e-6)
    assert found[0][3].message == "ValueError: the prediction could not be built"
    assert match(predictions, targets, CDVAE) == found[0]


def test_every_form_of_a_crystal(prototypes):
    targets = prototypes[:6]
    moved = [shaken(crystal, 0.05, k) for k, crystal in enumerate(targets)]
    atoms = [AseAtomsAdaptor.get_atoms(crystal) for crystal in moved]
    batch = CrystalBatch.from_structures(moved)
    results = [match(form, targets) for form in (moved, atoms, batch, batch.to_structure())]
    expected = [result.rms for result in results[0]]
    assert None not in expected
    for result in results[1:]:
        assert [r.rms for r in result] == pytest.approx(expected, abs=1e-5)


def test_ions_are_not_atoms():
    ions = NACL.copy()
    ions.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    results = match([ions, ions, NACL], [ions, NACL, NACL])
    assert [r.status for r in results] == ["matched", "unmatched", "matched"]


def test_what_is_no_crystal_is_an_error_that_says_why():
    partial = Structure(NACL.lattice, [{"Na": 0.5}, "Cl"], NACL.frac_coords)
    slab = AseAtomsAdaptor.get_atoms(NACL)
    slab.pbc = (True, True, False)
    lost = Structure(NACL.lattice, ["Na", "Cl"], [[math.nan, 0, 0], [0.5, 0.5, 0.5]])
    results = match([partial, slab, lost, FLAT, NACL], [NACL, NACL, NACL, NACL, FLAT])
    assert {r.status for r in results} == {"error"}
    for result, message in zip(
        results, ["partial", "periodic", "finite", "volume 0.0", "target has a cell"], strict=True
    ):
        assert message in result.message


def test_too_much_work_is_a_timeout_that_says_how_much():
    (easy, hard) = match([NACL, DIAMOND * [2, 1, 1]], [NACL, DIAMOND * [2, 1, 1]], UNREDUCED,
                         max_work=1e4)  # fmt: skip
    assert easy.matched
    assert hard.status == "timeout"
    assert "over the limit of 1e+04" in hard.message


def test_lists_that_do_not_belong_together():
    with pytest.raises(ValueError, match="2 predictions but 1 targets"):
        match([NACL, NACL], [NACL])


def test_crystals_are_reduced_once(monkeypatch):
    counted = []
    reduce = crystals_module.niggli_cells
    monkeypatch.setattr(
        crystals_module, "niggli_cells", lambda cells: counted.append(len(cells)) or reduce(cells)
    )
    targets = PreparedCrystals([QUARTZ, NACL])
    for noise in (0.01, 0.02, 0.03):
        match([shaken(QUARTZ, noise, 0), NACL], targets, [CDVAE, PYMATGEN, UNREDUCED])
    assert sum(counted) == 2 + 3 * 2


def test_memory_is_flat_in_the_number_of_pairs(monkeypatch):
    monkeypatch.setattr(judging, "CHUNK", 2)
    kept = []
    cells = PreparedCrystals.cells
    monkeypatch.setattr(
        PreparedCrystals,
        "cells",
        lambda self, *args: kept.append(len(self._niggli)) or cells(self, *args),
    )
    crystals = [shaken(NACL, 0.02, seed) for seed in range(7)]
    assert all(result.matched for result in match(crystals, 7 * [NACL]))
    assert len(kept) == 8
    assert max(kept) == 0


def test_crystals_of_other_formulas_are_not_reduced():
    references = PreparedCrystals([NACL, QUARTZ, BLENDE])
    first_match([shaken(BLENDE, 0.01, 0)], references)
    assert set(references._niggli) == {2}


def test_first_match_stops_at_the_first():
    references = [WURTZITE, BLENDE, shaken(BLENDE, 0.02, 1), NACL, BLENDE * [2, 1, 1]]
    queries = [BLENDE, WURTZITE, NACL, DIAMOND, shaken(BLENDE * [1, 1, 2], 0.01, 0)]
    found = first_match(queries, references)
    assert found == [FirstMatch(i, ()) for i in (1, 0, 3, None, 1)]
    assert first_match(queries, []) == [FirstMatch(None, ())] * 5


def test_first_match_names_what_it_could_not_compare(caplog):
    caplog.set_level(logging.WARNING)
    (found,) = first_match([NACL], [FLAT, NACL, NACL])
    assert found == FirstMatch(1, (0,))
    big = DIAMOND * [2, 1, 1]
    (found,) = first_match([big], [big, DIAMOND], UNREDUCED, max_work=1e4)
    assert found == FirstMatch(None, (0,))
    assert caplog.text.count("1 crystals could not be compared") == 2


def test_first_match_among_themselves():
    """With earlier ones that have no match: the fourth matches the third, but not the first."""
    crystals = [WURTZITE, NACL, BLENDE, shaken(BLENDE, 0.02, 1), shaken(WURTZITE, 0.02, 0)]
    crystals.append(shaken(BLENDE, 0.02, 2))
    found = first_match(crystals, None)
    assert [each.reference for each in found] == [None, None, None, 2, 0, 2]


def test_workers_give_what_this_process_gives(monkeypatch):
    """Also for ions, whose numbers only this process knows, and when a worker has died."""
    monkeypatch.setattr(judging, "_WORTH_STARTING", 0)
    monkeypatch.setattr(judging, "_WORTH_SENDING", 0)
    monkeypatch.setattr(judging, "_MIN_CHUNK", 3)
    ions = NACL.copy()
    ions.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    crystals = [QUARTZ, ions, None, WURTZITE, BLENDE, NACL, FLAT, DIAMOND]
    moved = [c if c is None else shaken(c, 0.02, 0) if c is not FLAT else c for c in crystals]
    settings = [CDVAE, UNREDUCED]
    here = match(moved, crystals, settings, num_workers=0)
    targets = PreparedCrystals(crystals)
    with judging.Workers(2) as workers:
        assert match(moved, targets, settings, num_workers=workers) == here
        assert set(targets._primitive) == set(range(8)), "what workers reduced is kept here"
        assert first_match(moved, targets, num_workers=workers) == first_match(moved, crystals)
        assert workers._executor is not None
        for process in workers._executor._processes.values():
            process.kill()
        assert match(moved, targets, settings, num_workers=workers) == here
        assert workers._executor is None


def test_few_pairs_start_no_workers():
    with judging.Workers(2) as workers:
        match([NACL], [NACL], num_workers=workers)
        assert workers._executor is None


def test_match_matrix_is_all_against_all():
    queries = [BLENDE, shaken(WURTZITE, 0.05, 0), None, NACL]
    references = [WURTZITE, BLENDE, DIAMOND]
    matrix = match_matrix(queries, references)
    assert matrix.shape == (4, 3)
    for i, query in enumerate(queries):
        for j, reference in enumerate(references):
            (result,) = match([query], [reference])
            if query is None:
                assert math.isnan(matrix[i, j])
            else:
                assert matrix[i, j] == (math.inf if result.rms is None else result.rms)
    assert np.isfinite(matrix).sum() == 2


def test_without_numba(tmp_path):
    """NumPy does the work instead, with the same results."""
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import numpy as np\n"
        "from src.metrics.structure_matching import reduction, search\n"
        "places = np.array([[0, 0, 0], [0.5, 0.5, 0.5]])\n"
        "cell = reduction.Cell(4 * np.eye(3), np.array([11, 17]), places)\n"
        "(cell,) = reduction.niggli_cells([cell])\n"
        "(found,) = search.search([(cell, cell)], search.Tolerances(0.5, 0.3, 10))\n"
        "assert search._compiled_kernel() is None\n"
        "print(found.rms)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == 0
