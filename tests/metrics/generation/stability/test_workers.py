"""Crystals in worker processes."""

import os
import time

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from src.data.crystal import Crystal
from src.data.structures import to_crystal
from src.metrics.generation.stability.energies import Relaxation
from src.metrics.generation.stability.workers import Job, judge

EMT_NAME = "ase.calculators.emt.EMT"


class Treacherous(EMT):
    """Fails in another way for each of some elements."""

    def calculate(self, atoms=None, *args, **kwargs):
        symbol = atoms.get_chemical_symbols()[0]
        if symbol == "Ag":
            os._exit(3)
        if symbol == "Au":
            time.sleep(1000)
        if symbol == "Pt":
            raise RuntimeError("no platinum")
        super().calculate(atoms, *args, **kwargs)


def crystal_of(symbol: str) -> Crystal:
    cell = to_crystal(bulk(symbol, "fcc", a=3.7, cubic=True))
    shifts = np.random.default_rng(0).normal(0, 0.02, (4, 3))
    return Crystal(cell.lattice, cell.atom_types, (cell.frac_coords + shifts) % 1.0)


def test_in_this_process():
    jobs = [Job(crystal_of(symbol), None) for symbol in ("Cu", "W", "Ni")]
    found = dict(judge(jobs, EMT_NAME, num_workers=0))
    assert [sorted(found[i]) for i in range(3)] == [
        ["energy", "force", "stress"], ["failed"], ["energy", "force", "stress"]
    ]  # fmt: skip
    assert found[1]["failed"].startswith("NotImplementedError: No EMT-potential for W")
    assert list(judge([], EMT_NAME)) == []


@pytest.mark.slow
def test_a_crystal_that_fails_is_charged_alone():
    symbols = ["Cu", "Ag", "Ni", "Au", "Al", "Pt", "Pd"]
    jobs = [Job(crystal_of(symbol), Relaxation(max_steps=20)) for symbol in symbols]
    name = f"{__name__}.Treacherous"
    # the workers have ten seconds more than the limit, which is looked at between steps
    results = dict(judge(jobs, name, 2, time_limit=15.0))
    found = {symbol: results[i] for i, symbol in enumerate(symbols)}
    assert found["Ag"] == {"failed": "its worker died with exit code 3", "crashed": True}
    assert found["Au"] == {"failed": "no result within 15 s", "time_limit": 15.0}
    assert found["Pt"] == {"failed": "RuntimeError: no platinum"}
    # and the others are as in one process
    good = [i for i, symbol in enumerate(symbols) if symbol in ("Cu", "Ni", "Al", "Pd")]
    alone = dict(judge([jobs[i] for i in good], EMT_NAME, num_workers=0))
    for place, i in enumerate(good):
        first, second = found[symbols[i]], alone[place]
        assert {**first, "seconds": 0} == {**second, "seconds": 0}
