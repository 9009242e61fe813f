import os
import signal
import time

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

pytest.importorskip("matminer")

from src.metrics.generation.fingerprints import (
    _SITE,
    Fingerprint,
    compute_fingerprints,
    fingerprint,
)
from src.metrics.generation.site_fingerprints import SiteFingerprints

CSCL = Structure(Lattice.cubic(4.12), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
THIN = Structure(Lattice.orthorhombic(300, 1, 1), ["Na"], [[0, 0, 0]])  # CrystalNN hangs on it


def fails_on_marked(structure: Structure, *_: object) -> Fingerprint:
    """Mimic a failure of CrystalNN; the crystal's property `fate` selects which."""
    match structure.properties.get("fate"):
        case "hang":
            time.sleep(600)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            raise ValueError("no neighbors")
    return Fingerprint(np.zeros(61), np.zeros(132), None)


def marked(fate: str) -> Structure:
    return Structure(CSCL.lattice, CSCL.species, CSCL.frac_coords, properties={"fate": fate})


@pytest.mark.slow  # starts a new worker for every one that ends
def test_failures_are_distinguished_and_do_not_affect_other_crystals():
    fates = ["", "hang", "", "raise", "die", ""]
    results = compute_fingerprints(
        [marked(fate) for fate in fates], num_workers=1, timeout=0.5, function=fails_on_marked
    )
    assert [isinstance(result, Fingerprint) for result in results] == [not fate for fate in fates]
    assert results[1] == "no result within 0.5 s"
    assert results[3] == "ValueError: no neighbors"
    assert "worker died" in results[4]


def test_values():
    (result,) = compute_fingerprints([CSCL], num_workers=0)
    assert result.structure.shape == (61,)
    assert result.composition.shape == (132,)
    # Magpie's first features: minimum, maximum, range and mean of the atomic numbers of Cs and Cl
    assert result.composition[:4] == pytest.approx([17, 55, 38, 36])


def test_average_minimum_distances():
    (result,) = compute_fingerprints([CSCL], num_workers=0)
    # each atom has 8 neighbors at half the body diagonal and 6 at the lattice constant
    assert result.amd[:14] == pytest.approx([4.12 * np.sqrt(3) / 2] * 8 + [4.12] * 6)


@pytest.mark.filterwarnings("ignore:No oxidation states", "ignore:CrystalNN. cannot locate")
@pytest.mark.parametrize("name", ["structure", "composition", "amd"])
def test_fingerprints_do_not_depend_on_the_cell(name):
    other = CSCL * [[1, 1, 0], [0, 1, 0], [0, 0, 2]]
    other.translate_sites(range(len(other)), [0.1, 0.2, 0.3])
    expected = getattr(fingerprint(CSCL), name)
    assert getattr(fingerprint(other), name) == pytest.approx(expected, abs=1e-6)


@pytest.mark.filterwarnings("ignore:No oxidation states", "ignore:CrystalNN. cannot locate")
@pytest.mark.parametrize("seed", range(3))
def test_fast_fingerprints_are_those_of_matminer(seed):
    rng = np.random.default_rng(seed)
    elements = (["Fe", "O", "Xe"], ["Cu", "Zn", "Cu"], ["Si", "C", "B"])[seed]
    lattice = Lattice(np.diag([3.0, 3.5, 4.0]) + rng.normal(0, 0.3, (3, 3)))
    crystal = Structure(lattice, elements, rng.random((3, 3)))
    expected = [_SITE.featurize(crystal, i) for i in range(len(crystal))]
    found = SiteFingerprints(_SITE)(crystal)
    assert found == pytest.approx(np.array(expected), abs=1e-9)
    assert (found > 0.01).sum() > 10


@pytest.mark.slow
def test_timeout_interrupts_compiled_code():
    results = compute_fingerprints([CSCL, THIN, CSCL], num_workers=1, timeout=5)
    assert [isinstance(result, Fingerprint) for result in results] == [True, False, True]
    assert results[1] == "no result within 5 s"
