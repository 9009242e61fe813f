"""A CIF is compared with itself: operations, names, settings and other figures must agree."""

import logging
from collections import Counter

import gemmi
import pytest

from src.data.cif import read_cif
from src.data.crystal import CrystalError
from src.data.operations import (
    closure,
    from_gemmi,
    missing_product,
    parse_operations,
    triplet,
)
from tests.data.test_cif import group, make_cif, symops

ROCKSALT = (5.64, 5.64, 5.64, 90, 90, 90)
SITES = ["Na1 Na 0 0 0", "Cl1 Cl 0.5 0.5 0.5"]
F = ("x,y,z", "x+1/2,y+1/2,z", "x+1/2,y,z+1/2", "x,y+1/2,z+1/2")
ZNO = ((3.25, 3.25, 5.2, 90, 90, 120), ["Zn Zn 0.3333 0.6667 0", "O O 0.3333 0.6667 0.382"])
PBO = ((3.97, 3.97, 5.02, 90, 90, 90), ["O1 O 0.75 0.25 0", "Pb1 Pb 0.25 0.25 0.2345"])
MONOCLINIC = ((5, 6, 7, 90, 105, 90), ["C1 C 0.1 0.2 0.3"])


XYZ = symops("x,y,z") + "\n"
_KXKYKZ = "_parent_propagation_vector.kxkykz"
HINTS = "type_symbol label symmetry_multiplicity disorder_group fract_x fract_y fract_z"


def _operations(name: str) -> list[str]:
    return [operation.triplet() for operation in gemmi.SpaceGroup(name).operations()]


def content(text: str) -> str:
    counts = Counter(read_cif(text, niggli=False).atom_types.tolist())
    return " ".join(f"{gemmi.Element(z).name}{n}" for z, n in sorted(counts.items()))


def formula(text: str, units: int | None = None) -> str:
    return f"_chemical_formula_sum '{text}'" + (
        "" if units is None else f"\n_cell_formula_units_Z {units}"
    )


@pytest.mark.parametrize(
    "symmetry",
    [
        group("F m -3 m"),
        group("Fm-3m"),
        group("FM-3M"),
        group("F m 3 m"),
        group("F_m_-3_m (225)"),
        "_space_group_name_H-M_ref 'F m -3 m'",
        "_space_group_name_H-M_full 'F 4/m -3 2/m'",
        "_SPACE_GROUP.NAME_H-M_ALT 'F m -3 m'",
        "_symmetry.space_group_name_H-M 'F m -3 m'",
        "_space_group.IT_number 225",
        "_symmetry.Int_Tables_number 225",
        "_space_group.name_Hall '-F 4 2 3'",
        symops(*F),
        f"{symops(*F)}\n_parent_propagation_vector.kxkykz '[1/2 0.333 -0.25]'",
        f"{symops(*F)}\nloop_\n_parent_propagation_vector.id\n{_KXKYKZ}\nk1 [1/2 1/2 1/2]",
        symops(*F).replace("_symmetry_equiv_pos_as_xyz", "_symmetry_equiv.pos_as_xyz"),
        symops(*F).replace("_symmetry_equiv_pos_as_xyz", "_space_group_symop.operation_xyz"),
        symops(*F[:3]).replace("_symmetry_equiv_pos_as_xyz", "_space_group_generator.xyz"),
        "loop_\n_space_group_symop_magn_operation.xyz\nx,y,z,+1\n-x,-y,-z,+1\nloop_\n"
        "_space_group_symop_magn_centering.xyz\nx,y,z,+1\nx+1/2,y+1/2,z,-1\nx+1/2,y,z+1/2,-1\n"
        "x,y+1/2,z+1/2,+1",
    ],
)
def test_symmetry_under_all_names(symmetry):
    assert content(make_cif(ROCKSALT, SITES, symmetry)) == "Na4 Cl4"


@pytest.mark.parametrize(
    ("symmetry", "reason"),
    [
        ("_symmetry_cell_setting cubic", "only by _symmetry_cell_setting, which is not understood"),
        ("_space_group.name_Schoenflies Oh.5", "_space_group.name_Schoenflies, which is not"),
        ("_my_space_group_name 'F m -3 m'", "_my_space_group_name, which is not"),
        ("_space_group_magn.name_BNS Fm-3m", "magnetic symmetry without a list"),
        ("_cell_modulation_dimension 1", "modulated"),
        ("_jana_cell_modulation_dimension 1", "modulated"),
        ("loop_\n_jana_atom_site_displace_legendre_axis\nx", "modulated"),
        ("_exptl_crystal_type_of_structure comp", "modulated"),
        (f"{XYZ}_parent_propagation_vector.kxkykz '[0.2147 0 0]'", "modulated"),
        (f"{XYZ}_parent_propagation_vector.kxkykz '[0 0 alpha]'", "modulated"),
        (f"{XYZ}loop_\n_parent_propagation_vector.id\n{_KXKYKZ}\nk1 [0 0.2147 0]", "modulated"),
        ("_space_group_ssg_name 'P-3m1(00g)0s0'", "modulated"),
        ("loop_\n_space_group_symop_ssg_operation_algebraic\nx1,x2,x3,x4", "modulated"),
        (group("F m -3 m") + "\n_space_group_IT_number 221", "number 225, not 221"),
        (group("F m -3 m :2"), "no setting '2'"),
        (group("P 63/m m c"), "not a cell of"),
        (symops(*F[:3]), "not a group: .* is missing"),
        (symops("x,y,z", "x+0.123,y,z"), "not a group"),
        (symops("x,y,z", "x+0.19,y,z"), "translation in symmetry operation .* cannot be read"),
        (symops("h,k,l"), "cannot be read"),
        (symops("x,y,z") + "\n" + group("F m -3 m"), "1 symmetry operation is listed, but .* 192"),
        (symops(*F) + "\n_space_group_IT_number 2", "4 symmetry operations are listed"),
        (
            symops(*F) + "\nloop_\n_space_group_symop.operation_xyz\nx,y,z",
            "two lists of symmetry operations differ: .*4 in|two lists",
        ),
        (symops(*F) + "\n_space_group_symop.operation_xyz x,y,z", "two lists"),
        ("_cell.length_a 5.7", "are given with different values"),
        (XYZ + "_symmetry_cell_setting cubic", "cubic, but the symmetry operations are triclinic"),
        (group("F m -3 m") + "\n_space_group.crystal_system tetragonal", "operations are cubic"),
        (XYZ + "_space_group_Bravais_type cF", "cF, but the only operation is x,y,z"),
        (XYZ + "_space_group_magn.number_BNS 225.116", "225.116, but the only operation"),
        ("_icsd_sg 225", "only by _icsd_sg, which is not understood"),
        ("_my_group 'F m -3 m'", "_my_group seems to give the symmetry"),
        ("loop_\n_equivalent_position\nx,y,z\n-x,-y,z", "_equivalent_position seems to give"),
        ("loop_\n_atom_site_moment_Fourier_axis\nx", "modulated"),
        (symops("x,y,z", "x,y+1/2,z+1/2") + "\n" + group("C 1"), "listed, (but|which)"),
        (group("C m m m") + "\n" + symops(*_operations("A m m m")), "16 symmetry operations are"),
    ],
)
def test_contradictions_are_rejected(symmetry, reason):
    with pytest.raises(CrystalError, match=reason):
        read_cif(make_cif(ROCKSALT, SITES, symmetry))


def test_generators_of_the_declared_group_are_completed():
    symmetry = symops("x,y,z", "-y,x-y,z", "-x,-y,z+1/2", "y,x,z+1/2")
    assert content(make_cif(*ZNO, f"{symmetry}\n{group('P 63 m c')}")) == "O2 Zn2"


def test_a_twice_listed_centring_stands_for_a_missing_one():
    listed = from_gemmi(gemmi.SpaceGroup("F m -3 m").operations())
    texts = [triplet(listed, i) for i in range(len(listed))]
    wrong = [t for t in texts if not t.endswith("z")] + [t for t in texts if t.endswith("z")][:1]
    symmetry = f"{symops(*wrong)}\n{group('F m -3 m')}\n{formula('Na Cl', 4)}"
    assert content(make_cif(ROCKSALT, SITES, symmetry)) == "Na4 Cl4"


def test_the_formula_decides_between_readings(caplog):
    symmetry = f"{symops('x,y,z')}\n{group('F m -3 m')}\n"
    with caplog.at_level(logging.WARNING):
        assert content(make_cif(ROCKSALT, SITES, symmetry + formula("Na Cl", 4))) == "Na4 Cl4"
    assert "1 symmetry operation is listed, but space group 'F m -3 m' has 192" in caplog.text
    assert content(make_cif(ROCKSALT, SITES, symmetry + formula("Na Cl", 1))) == "Na1 Cl1"
    for undecided in (formula("Na Cl"), formula("Na2 Cl3", 2)):
        with pytest.raises(CrystalError, match="192"):
            read_cif(make_cif(ROCKSALT, SITES, symmetry + undecided))


def test_all_atoms_listed_beside_the_name_of_their_group():
    corners = ("0 0 0", "0.5 0.5 0", "0.5 0 0.5", "0 0.5 0.5")
    sites = [f"Cu Cu {corner}" for corner in corners]
    symmetry = f"{symops('x,y,z')}\n{group('F m -3 m')}"
    assert content(make_cif(ROCKSALT, sites, symmetry)) == "Cu4"


@pytest.mark.parametrize(
    ("symmetry", "expected"),
    [
        (group("P 4/n m m :2"), "O2 Pb2"),
        (group("P 4/n m m Z"), "O2 Pb2"),
        (group("P4/nmmZ"), "O2 Pb2"),
        (group("P 4/n m m (origin choice 2)"), "O2 Pb2"),
        (group("P 4/n m m") + "\n_space_group_IT_coordinate_system_code 2", "O2 Pb2"),
        ("_space_group_IT_number 129\n_space_group.IT_coordinate_system_code 2", "O2 Pb2"),
        (group("P 4/n m m"), "O2 Pb2"),  # the other has overlapping atoms
        (group("P 4/n m m") + "\n" + formula("Pb O"), "O2 Pb2"),
    ],
)
def test_origins(symmetry, expected):
    assert content(make_cif(*PBO, symmetry)) == expected


@pytest.mark.parametrize("suffix", [" :1", " S", "'\n_space_group_IT_coordinate_system_code '1"])
def test_an_origin_with_which_atoms_overlap_is_rejected(suffix):
    with pytest.raises(CrystalError, match=r"choice 1\), as the file says, .*origin choice 2"):
        read_cif(make_cif(*PBO, group(f"P 4/n m m{suffix}")))


def test_an_undecided_origin_is_rejected():
    sites = ["Cs1 Cs 0.1 0.2 0.3"]
    with pytest.raises(CrystalError, match=r"nothing decides between .*choice 1.*choice 2"):
        read_cif(make_cif((90, 90, 90, 90, 90, 90), sites, group("P n -3")))


@pytest.mark.parametrize("name", ["P 21/c", "P2_1/c", "P2(1)/n", "P 1 21/a 1", "P 1 2_1/c 1"])
def test_monoclinic_names(name):
    assert content(make_cif(*MONOCLINIC, group(name))) == "C4"


@pytest.mark.parametrize(
    ("figure", "reason"),
    [
        (formula("C H4"), "hydrogens without positions"),
        (formula("C", 2), "times _cell_formula_units_Z 2"),
        (formula("N"), "says N1"),
        ("_exptl_crystal_density_diffrn 9", "density is 0.*is 9"),
        ("_exptl_crystal_density_meas 9", "density is 0.*is 9"),
        ("_chemical_formula_weight 12.011\n_cell_formula_units_Z 3", "weighs 12.01.*36.03"),
        ("_exptl_crystal_F_000 24", "6 electrons, .* is 24"),
        ("_cell_volume 70", "_cell_volume is 70"),
        ("_cell.volume 70", "_cell_volume is 70"),
    ],
)
def test_figures_that_differ(figure, reason):
    with pytest.raises(CrystalError, match=reason):
        read_cif(make_cif((4, 4, 4, 90, 90, 90), ["C C 0 0 0"], figure))


@pytest.mark.parametrize(
    "figure",
    [
        formula("C1", 1),
        formula("C"),
        formula("C0.9999", 1),
        formula("?"),
        formula("see text"),
        "_exptl_crystal_density_diffrn 0.3116",
        "_exptl_crystal_density_diffrn 311.6",  # kg/m^3
        "_exptl_crystal_F_000 6\n_cell_volume 64.00(3)",
        "_chemical_formula_weight ?\n_cell_formula_units_Z .",
    ],
)
def test_figures_that_agree(figure):
    assert content(make_cif((4, 4, 4, 90, 90, 90), ["C C 0 0 0"], figure)) == "C1"


def test_the_formula_of_a_whole_cell():
    """pymatgen writes the content of the cell, beside the Z of the reduced formula."""
    both = ["C C 0 0 0", "C C 0.5 0.5 0.5"]
    assert content(make_cif(ROCKSALT, both, formula("C2", 2))) == "C2"
    with pytest.raises(CrystalError, match="C1"):
        read_cif(make_cif(ROCKSALT, both[:1], formula("C2", 2)))


def test_attached_hydrogens_and_dummies():
    for column, value, reason in (
        ("attached_hydrogens", 2, "2 attached hydrogens"),
        ("calc_flag", "dum", "dummy"),
    ):
        columns = f"type_symbol fract_x fract_y fract_z {column}"
        with pytest.raises(CrystalError, match=reason):
            read_cif(make_cif(ROCKSALT, [f"C 0 0 0 {value}"], columns=columns))


@pytest.mark.parametrize(
    ("symmetry", "rows", "others", "reason"),
    [
        (XYZ, ["Na Na1 4 . 0 0 0"], "", "Na1, but by the multiplicities of its sites Na4"),
        ("", ["Na Na1 4 . 0 0 0"], "", "Na1, but by the multiplicities"),
        (XYZ, ["Na Na1 1 1 0 0 0", "Na Na2 1 2 0 0 0.5"], "", "are alternatives"),
        (XYZ, ["Na Na1 1 -1 0 0 0"], "", "are alternatives"),
        (XYZ, ["Na Na1 1 . 0 0 0"], "loop_\n_atom_site_aniso_label\nNa1\nCl1", "Cl1 has displ"),
        (XYZ, ["Na Na1 1 . 0 0 0"], "loop_\n_atom_type_symbol\nNa+\nCl-", "lists Cl-, but no"),
        (
            XYZ, ["Na Na1 1 . 0 0 0"],
            "loop_\n_atom_type_symbol\n_atom_type_number_in_cell\nNa+ 4\nCl- 0",
            "Na1, but _atom_type_number_in_cell says Na4",
        ),
        (XYZ, ["Na Na1 1 . 0 0 0"], "_chemical_formula_structural 'Na Cl'", "Na1, but _chem"),
        # these are no contradictions: 1 for all, and a formula that confirms the atoms
        (symops(*F), ["Na Na1 1 . 0 0 0"], "", None),
        (symops(*F), ["Na Na1 4 0 0 0 0"], "_chemical_formula_moiety Na", None),
        (XYZ, ["Na Na1 4 -1 0 0 0"], formula("Na", 1), None),
    ],
)  # fmt: skip
def test_other_signs_of_missing_atoms(symmetry, rows, others, reason):
    text = make_cif(ROCKSALT, rows, f"{symmetry}\n{others}", columns=HINTS)
    if reason is None:
        assert content(text) in ("Na1", "Na4")
        return
    with pytest.raises(CrystalError, match=reason):
        read_cif(text)


def test_a_short_name_with_another_unique_axis():
    sites = ["C1 C 0.1 0.2 0.3"]
    assert content(make_cif((5, 6, 7, 90, 90, 105), sites, group("P 21/b"))) == "C4"


# Operations


@pytest.mark.parametrize("name", ["P 1", "P 61", "F d -3 m", "R -3 c", "I 41/a m d", "P 42/n n m"])
def test_space_groups_are_groups(name):
    operations = from_gemmi(gemmi.SpaceGroup(name).operations())
    assert len(operations) == len(list(gemmi.SpaceGroup(name).operations()))
    assert missing_product(operations) is None
    texts = tuple(triplet(operations, i) for i in range(len(operations)))
    assert parse_operations(texts).codes == operations.codes


def test_the_group_that_operations_generate():
    generated = closure(parse_operations(("-y,x-y,z+1/3", "-x,-y,z+0.5")))
    assert generated is not None
    assert (
        generated.codes == from_gemmi(gemmi.SpaceGroup("P 65").operations()).codes
        or len(generated) == 6
    )
    assert closure(parse_operations(("x+y,y,z",))) is None  # of infinite order


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x+1/2,y,z", "1/2+X, Y, Z"),
        ("x-y,x,z+1/6", "x-y,x,z+.16667"),
        ("-x,y,z", "-1*x,+y,z"),
        ("x+1/3,y,z", "x+0.333,y,z"),
        ("x+2/5,y,z", "x+0.4,y,z"),
        ("x,y,z-1/4", "x,y,z+3/4"),
    ],
)
def test_operations_in_several_spellings(one, other):
    assert parse_operations((one,)).codes == parse_operations((other,)).codes
