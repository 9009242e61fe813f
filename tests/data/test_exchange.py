import json

import numpy as np
import pytest
from ase.build import bulk
from ase.io.jsonio import encode

from src.data.crystal import CrystalError
from src.data.exchange import crystal_of_content, find_entries
from src.data.structures import to_atoms, to_structure
from tests.data.test_crystal import salt

SALT = salt()
POSITIONS = SALT.frac_coords @ SALT.lattice
PYMATGEN = to_structure(SALT).as_dict()
JARVIS = {
    "lattice_mat": SALT.lattice.tolist(), "coords": SALT.frac_coords.tolist(),
    "elements": ["Na", "Cl"], "cartesian": False,
}  # fmt: skip
OPTIMADE = {
    "lattice_vectors": SALT.lattice.tolist(), "cartesian_site_positions": POSITIONS.tolist(),
    "species_at_sites": ["Na", "Cl"], "dimension_types": [1, 1, 1],
    "species": [
        {"name": n, "chemical_symbols": [n], "concentration": [1.0]} for n in ("Na", "Cl")
    ],
}  # fmt: skip
ASE = json.loads(encode(to_atoms(SALT)))
FORMS = {
    "pymatgen": PYMATGEN,
    "pymatgen without a matrix": PYMATGEN | {
        "lattice": {k: v for k, v in PYMATGEN["lattice"].items() if k != "matrix"}
    },
    "jarvis": JARVIS,
    "jarvis, Cartesian": JARVIS | {"coords": POSITIONS.tolist(), "cartesian": True},
    "optimade": OPTIMADE,
    "ase": ASE,
    "text": json.dumps(PYMATGEN),
    "arrays of a table": OPTIMADE
    | {"lattice_vectors": np.array([*SALT.lattice, None], object)[:3]},
}  # fmt: skip


@pytest.mark.parametrize("content", FORMS.values(), ids=FORMS)
def test_all_forms_describe_the_same_crystal(content):
    found = crystal_of_content(content)
    assert found.atom_types.tolist() == SALT.atom_types.tolist()
    np.testing.assert_allclose(found.lattice, SALT.lattice, atol=1e-9)
    offsets = found.frac_coords - SALT.frac_coords
    np.testing.assert_allclose(offsets, np.rint(offsets), atol=1e-9)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"a": 1}, "not a pymatgen Structure"),
        (3, "not a pymatgen Structure"),
        ("{", "not valid JSON"),
        (JARVIS | {"elements": ["Na"]}, "array of shape"),
        (JARVIS | {"elements": ["Na", "X"]}, "'X' is not an element"),
        (JARVIS | {"elements": ["Na", "Wat"]}, "'Wat' is not an element"),
        (JARVIS | {"cartesian": "False"}, "neither true nor false"),
        (JARVIS | {"lattice_mat": [[0] * 3] * 3}, "no volume"),
        (OPTIMADE | {"dimension_types": [1, 1, 0]}, "not periodic"),
        (OPTIMADE | {"species_at_sites": ["Na", "mix"]}, "'mix' is not one element"),
        (ASE | {"pbc": [True, True, False]}, "not periodic"),
        (ASE | {"numbers": [11, 0]}, "no element"),
        (PYMATGEN | {"sites": []}, "no atoms"),
        (PYMATGEN | {"sites": [{}]}, "damaged pymatgen dictionary"),
        # figures of the same dictionary that contradict each other
        (PYMATGEN | {"lattice": PYMATGEN["lattice"] | {"a": 5.0}}, "said to be 5.0 Å"),
        (PYMATGEN | {"lattice": PYMATGEN["lattice"] | {"volume": 5}}, "said to have 5 Å"),
        (
            PYMATGEN | {"sites": [PYMATGEN["sites"][0] | {"abc": [0.2, 0.3, 0.4]}]},
            "coordinates of a site are .* Å apart",
        ),
        (OPTIMADE | {"fractional_site_positions": [[0.2] * 3] * 2}, "Å apart"),
        (OPTIMADE | {"nsites": 4}, "nsites is 4, but there are 2"),
        (OPTIMADE | {"elements": ["Cl", "K"]}, "elements are Cl, K"),
        (OPTIMADE | {"chemical_formula_reduced": "Cl2Na"}, "Cl2Na, but the sites have Na1 Cl1"),
        (OPTIMADE | {"nelements": 3}, "nelements is 3, but the sites have 2"),
        (OPTIMADE | {"elements": ["Cl", "Na"], "elements_ratios": [0.4, 0.6]}, "said to be Cl"),
        (OPTIMADE | {"chemical_formula_descriptive": "NaCl(H2O)2"}, "have Na1 Cl1"),
        (OPTIMADE | {"chemical_formula_anonymous": "A2B"}, "A2B, but the sites have"),
        (OPTIMADE | {"site_coordinate_span": "asymmetric_unit"}, "not those of the cell"),
        (OPTIMADE | {"structure_features": ["implicit_atoms"]}, "implicit_atoms: not supported"),
        (
            OPTIMADE | {"species": [*OPTIMADE["species"], {"name": "Na", "chemical_symbols": "K"}]},
            "two species are named 'Na'",
        ),
        (JARVIS | {"abc": [1, 2, 3]}, "said to be 1 Å"),
        (JARVIS | {"angles": [90, 90, 12]}, "degrees, but said to be 12"),
        (ASE | {"info": {"occupancy": {"0": {"Na": 0.5}}}}, "partial occupancies"),
        ('{"lattice_mat": 1, "lattice_mat": 2}', "'lattice_mat' is given twice"),
    ],
)
def test_what_is_no_ordered_crystal(content, reason):
    with pytest.raises(CrystalError, match=reason):
        crystal_of_content(content)


def test_almost_full_occupancy_is_full():
    for occupancy, accepted in ((0.9995, True), (0.5, False)):
        sites = [dict(s, species=[{"element": "Na", "occu": occupancy}]) for s in PYMATGEN["sites"]]
        if accepted:
            assert crystal_of_content(PYMATGEN | {"sites": sites}).num_atoms == 2
        else:
            with pytest.raises(CrystalError, match="not an ordered crystal"):
                crystal_of_content(PYMATGEN | {"sites": sites})


def database() -> dict:
    row = {
        "numbers": [29], "positions": [[0, 0, 0]], "cell": bulk("Cu").cell.tolist(),
        "pbc": [True] * 3, "unique_id": "u", "key_value_pairs": {"gap": 0.5},
    }  # fmt: skip
    return {"1": row, "3": "damaged", "ids": [1, 3], "nextid": 4}


@pytest.mark.parametrize(
    ("content", "ids", "gaps"),
    [
        (PYMATGEN, [None], [None]),
        ([PYMATGEN, PYMATGEN | {"properties": {"gap": 1.5}}], [None, None], [None, 1.5]),
        ({"a": PYMATGEN, "b": {}}, ["a", "b"], [None, None]),
        ({"NaN": PYMATGEN, "007": JARVIS, "b": None}, ["NaN", "007", "b"], [None] * 3),
        ({"a": {"a-0": {"structure": PYMATGEN, "gap": 2}}}, ["a-0"], [2]),
        ([{"jid": "J-1", "atoms": JARVIS, "gap": 0.1}], ["J-1"], [0.1]),
        (
            {"data": [{"id": "x", "type": "structures", "attributes": OPTIMADE | {"gap": 3}}],
             "meta": {}},
            ["x"], [3],
        ),
        ({"data": {"id": "x", "attributes": OPTIMADE}, "meta": {}}, ["x"], [None]),
        ({"columns": ["structure", "gap"], "index": [0], "data": [[PYMATGEN, 4]]}, [None], [4]),
        ({"structure": {"0": PYMATGEN, "1": ASE}, "gap": {"0": 6, "1": 7}}, ["0", "1"], [6, 7]),
        ({"entries": [{"structure": json.dumps(PYMATGEN), "gap": 8}]}, [None], [8]),
        (database(), ["u", None], [0.5, None]),
        ([{"material_id": "mp-1", "cif": "data_x\n_cell_length_a 4", "gap": 5}], ["mp-1"], [5]),
    ],
)  # fmt: skip
def test_entries_of_json(content, ids, gaps):
    found = list(find_entries(content))
    assert [each.id for each in found] == ids
    assert [each.values.get("gap") for each in found] == gaps
