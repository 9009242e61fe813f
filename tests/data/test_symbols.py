import pytest

from src.data.crystal import CrystalError
from src.data.symbols import element_of_label, element_of_type, parse_formula


@pytest.mark.parametrize(
    ("text", "label", "number"),
    [
        *(("Fe", "A1", 26), ("FE", "A1", 26), ("fe", "A1", 26), ("D", "D1", 1), ("Na+", "x", 11)),
        *(("Fe3+", None, 26), ("O2-", "x", 8), ("O-2", "x", 8), ("Fe2.5+", "x", 26)),
        *(("Fe1", "Fe1", 26), ("Fe1", None, 26), ("O1", "O2", 8)),
    ],
)
def test_types(text, label, number):
    assert element_of_type(text, label, ()) == number


@pytest.mark.parametrize(
    "text",
    [
        "T", "T1", "X", "Va", "Wat", "M", "OH", "H2O", "NH4", "CO", "NO", "HF", "HO", "CO3",
        "C60", "Fe,Ni", "Fe/Ni", "FeNi", "Fe.5", "Fe0.5", "Mg.5Fe.5", "(Fe,Ni)", "Fe:Ni",
        "Fe+Ni", "RE", "FE1NI1", "Cval", "Siva", "2H", "O1W", "Fe?", "?", ".", "Å１", "Fe１",
    ],
)  # fmt: skip
def test_what_is_no_element(text):
    for find in (
        lambda: element_of_type(text, "A1", ()),
        lambda: element_of_label(f"({text}" if text in ("O1W", "C60") else text, (), ()),
    ):
        with pytest.raises(CrystalError, match="is not an element"):
            find()


@pytest.mark.parametrize("label", ["La_Sr", "La1-Sr1", "FE1NI", "C1H", "O-H", "O_h1", "N2H"])
def test_a_label_with_other_elements(label):
    with pytest.raises(CrystalError, match="is not an element"):
        element_of_label(label, (), ())


def test_labels_of_one_element():
    for label, number in (("Cu_I", 29), ("Cu1_1", 29), ("H1NA", 1), ("Si_T1", 14), ("O1W", 8)):
        assert element_of_label(label, (), ()) == number
    assert element_of_label("C1H", {6: 1}, ()) == 6  # the formula is compared with the atoms


def test_the_formula_decides_what_capitals_mean():
    assert element_of_type("CO", "A1", {27: 1}) == 27
    assert element_of_label("CA1", (), ()) == 20
    assert element_of_label("CA1", {20: 1}, {"C"}) == 20
    with pytest.raises(CrystalError, match="it may be Ca or C and A"):
        element_of_label("CA1", {6: 1}, {"C"})


@pytest.mark.parametrize(
    ("text", "amounts"),
    [
        ("Mg O", {12: 1, 8: 1}),
        ("C6 H6 O0.5", {6: 6, 1: 6, 8: 0.5}),
        ("SrTiO3", {38: 1, 22: 1, 8: 3}),
        ("CL2 FE", {17: 2, 26: 1}),
        ("D2 O", {1: 2, 8: 1}),
        ("CO2", None),
        ("see text", None),
        ("Ca (O H)2", {20: 1, 8: 2, 1: 2}),
        ("Na Cl, 2(H2 O)", {11: 1, 17: 1, 1: 4, 8: 2}),
        ("Ca((OH)2)3", {20: 1, 8: 6, 1: 6}),
        ("O1.5(2) Na1", {8: 1.5, 11: 1}),
        ("2(H2 O)3", None),
        ("Ca (O H", None),
        ("", None),
    ],
)
def test_formulas(text, amounts):
    assert parse_formula(text) == amounts
