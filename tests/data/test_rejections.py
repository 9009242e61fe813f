"""Reasons that differ only in numbers and names are of the same kind."""

import pytest

from src.data.rejections import kind_of


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("atom 3 has occupancy 0.5: not an ordered crystal", "partial occupancy"),
        ("partial occupancies: not an ordered crystal", "partial occupancy"),
        ("atoms 0 and 3 are 0.123 Å apart, closer than 0.5 Å", "overlapping atoms"),
        ("the cell has C1, but _chemical_formula_sum says C2", "contradiction"),
        ("4 symmetry operations are listed, but space group 'P 1' has 1", "contradiction"),
        ("_space_group_ssg_name: modulated structures are not supported", "unsupported symmetry"),
        ("two sites share one position", "overlapping atoms"),
        ("21 atoms: more than 20", "too many atoms"),
        ("400 sites under 192 symmetry operations: more than 10000 atoms", "too many atoms"),
        ("'Wat' is not an element", "unknown element"),
        ("'Wat' is no element", "unknown element"),  # in caches of earlier versions
        ("an atom has no element", "unknown element"),
        ("atomic number 103 is outside 1 to 99", "element out of range"),
        ("unknown space group 'P 99'", "unreadable symmetry"),
        ("cell angle 190.0 is not between 0 and 180 degrees", "impossible cell"),
        ("no cell has these three angles", "impossible cell"),
        ("a lattice entry is not a number below 10000 Å", "impossible cell"),
        ("no atoms with fractional coordinates", "no atoms"),
        ("_cell_length_a is missing", "incomplete file"),
        ("_atom_site_fract_x of atom 2 is ?, not a number", "incomplete file"),
        ("not valid CIF: 9: Wrong number of values in loop _symmetry_equiv_pos_*", "damaged file"),
        ("frame 7 has 'abc' and 3 apples: whatever", "frame has and apples"),
        ("12", "12"),
    ],
)
def test_kinds_of_reasons(reason, kind):
    assert kind_of(reason) == kind
