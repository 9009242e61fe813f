import math

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Composition, Lattice, Structure

from src.data.cif import read_cif
from src.data.structures import to_crystal, to_structure
from src.metrics.generation import validity
from src.metrics.generation.validity import invalid_reason, is_valid_composition, is_valid_structure


def pair(distance: float, edge: float = 5.0) -> Structure:
    """Two atoms at this distance along a, on opposite sides of the cell boundary."""
    half = distance / edge / 2
    return Structure(Lattice.cubic(edge), ["Na", "Cl"], [[half, 0.5, 0.5], [1 - half, 0.5, 0.5]])


class TestStructure:
    @pytest.mark.parametrize(("distance", "valid"), [(0.49, False), (0.51, True)])
    def test_two_atoms(self, distance, valid):
        assert is_valid_structure(pair(distance)) is valid

    @pytest.mark.parametrize(("edge", "valid"), [(0.49, False), (0.51, True)])
    def test_images_of_one_atom(self, edge, valid):
        thin = Structure(Lattice.orthorhombic(edge, 6.0, 6.0), ["Na"], [[0, 0, 0]])
        assert is_valid_structure(thin) is valid

    def test_volume(self):
        # Of all lattices with neighbors 0.51 Å apart, fcc has the smallest cell: d^3 / sqrt(2).
        edge = 0.51 / math.sqrt(2)
        fcc = Structure(
            Lattice([[0, edge, edge], [edge, 0, edge], [edge, edge, 0]]), ["Cu"], [[0] * 3]
        )
        assert invalid_reason(fcc) == "the cell volume is 0.094 Å^3, less than 0.1"

    def test_non_finite_numbers(self):
        assert invalid_reason(Structure(Lattice.cubic(np.nan), ["Na"], [[0, 0, 0]])) is not None
        assert invalid_reason(Structure(Lattice.cubic(4.0), ["Na"], [[0, np.inf, 0]])) is not None

    def test_partial_occupancies_and_sites_without_element(self):
        half = Structure(Lattice.cubic(4.0), [{"Na": 0.5}], [[0, 0, 0]])
        assert "partial occupancies" in invalid_reason(half)
        assert "no element" in invalid_reason(Structure(Lattice.cubic(4.0), ["X"], [[0, 0, 0]]))

    def test_agrees_with_pymatgen(self):
        rng = np.random.default_rng(0)
        verdicts = []
        for _ in range(60):
            lattice = Lattice(rng.normal(size=(3, 3)) * rng.uniform(1, 4))
            structure = Structure(lattice, ["Na"] * 3, rng.random((3, 3)))
            alone = structure.get_neighbor_list(0.5)[3].size == 0
            verdicts.append(alone and structure.volume >= 0.1)
            assert is_valid_structure(structure) is verdicts[-1]
            assert invalid_reason(to_crystal(structure)) == invalid_reason(structure)
        assert 10 < sum(verdicts) < 50


class TestComposition:
    @pytest.mark.parametrize(
        ("formula", "valid"),
        [
            ("NaCl", True),
            ("CaTiO3", True),
            ("SiO2", True),
            ("NaCl2", False),
            ("Fe3O4", False),  # needs two oxidation states of iron
            ("O2", True),  # one element
            ("Fe3Al", True),  # metals
            ("XeAr", False),
            ("RfO2", False),  # SMACT has no data
        ],
    )
    def test_known_compositions(self, formula, valid):
        assert is_valid_composition(Composition(formula)) is valid

    def test_oxidation_states_and_isotopes_are_ignored(self):
        assert is_valid_composition(Composition({"Na0+": 1, "Cl5+": 1}))
        assert is_valid_composition(Composition("D2O"))

    def test_a_site_without_element(self):
        assert not is_valid_composition(Composition({"X": 1, "Na": 1}))

    def test_each_reduced_formula_is_checked_once(self, monkeypatch):
        checked = []
        monkeypatch.setattr(
            "smact.screening.smact_validity", lambda c, **_: checked.append(c) or True
        )
        validity._is_valid_formula.cache_clear()
        for formula in ("LiF", "Li4F4", "FLi", "LiF2"):
            is_valid_composition(Composition(formula))
        validity._is_valid_formula.cache_clear()
        assert checked == [Composition("LiF"), Composition("LiF2")]

    @pytest.mark.timeout(20)
    def test_many_elements_do_not_hang(self):
        metals = "TiMnNbVCrFeCoCuNiMo"
        assert is_valid_composition(Composition(metals))
        assert not is_valid_composition(Composition(f"{metals}O8"))

    @pytest.mark.parametrize(
        ("formula", "as_cdvae", "by_default"),
        [("NaCl", True, True), ("NaCl2", False, False), ("Fe3Al", True, True),
         ("MgB2", False, True)],
    )  # fmt: skip
    def test_defaults_of_smact(self, formula, as_cdvae, by_default):
        assert is_valid_composition(Composition(formula)) is as_cdvae
        assert is_valid_composition(Composition(formula), as_cdvae=False) is by_default

    def test_fractions_are_refused(self):
        with pytest.raises(ValueError, match="whole numbers"):
            is_valid_composition(Composition("Na0.5Cl"))


def test_fraction_of_valid_real_crystals(shared_data):
    texts = pd.read_csv(shared_data / "mp_20" / "test.csv.gz", nrows=1000)["cif"]
    structures = [to_structure(read_cif(text)) for text in texts]
    assert all(map(is_valid_structure, structures))
    fraction = np.mean([is_valid_composition(s.composition) for s in structures])
    assert fraction == pytest.approx(0.90, abs=0.02)


@pytest.mark.slow
def test_the_published_share_of_valid_compositions(shared_data):
    """CDVAE's rule accepts 90.41 % of MP-20's training set, and as many of a part of its test."""
    texts = pd.read_csv(shared_data / "mp_20" / "test.csv.gz")["cif"]
    accepted = [is_valid_composition(to_structure(read_cif(text)).composition) for text in texts]
    assert len(accepted) == 3000
    assert np.mean(accepted) == pytest.approx(0.9041, abs=0.01)
