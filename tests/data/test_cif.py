import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import spglib
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifParser

from src.data.cif import read_cif, write_cif
from src.data.crystal import Crystal, CrystalError, check_crystal, niggli_reduce
from tests.data.test_crystal import chiral_crystal, salt

# spglib 2.8 warns on every call that the way it reports failures will change
pytestmark = pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning")

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

# Same crystal, cell and scale: only rounding may differ.
MATCHER = StructureMatcher(
    ltol=1e-3, stol=1e-3, angle_tol=0.01, primitive_cell=False, scale=False, attempt_supercell=False
)

CUBIC = (4.0, 4.0, 4.0, 90, 90, 90)


def make_cif(cell, sites, symmetry="", columns="label type_symbol fract_x fract_y fract_z") -> str:
    """CIF text from six cell parameters, lines with sites and lines with symmetry."""
    tags = [f"_cell_length_{x}" for x in "abc"]
    tags += [f"_cell_angle_{x}" for x in ("alpha", "beta", "gamma")]
    lines = ["data_test", *(f"{tag} {value}" for tag, value in zip(tags, cell, strict=True))]
    lines += [symmetry, "loop_", *(f"_atom_site_{column}" for column in columns.split()), *sites]
    return "\n".join(lines) + "\n"


def symops(*triplets: str) -> str:
    return "\n".join(["loop_", "_symmetry_equiv_pos_as_xyz", *(f"'{t}'" for t in triplets)])


def group(name: str) -> str:
    return f"_symmetry_space_group_name_H-M '{name}'"


def pymatgen_structure(text: str) -> Structure:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen reports every rounding that it repairs
        return CifParser.from_str(text).parse_structures(primitive=False)[0]


def to_structure(crystal: Crystal) -> Structure:
    return Structure(crystal.lattice, crystal.atom_types.tolist(), crystal.frac_coords)


def space_group(crystal: Crystal) -> str:
    cell = (crystal.lattice, crystal.frac_coords, crystal.atom_types)
    return str(spglib.get_spacegroup(cell, symprec=1e-4))  # type: ignore[arg-type]


def assert_valid(crystal: Crystal, num_atoms: int) -> None:
    assert crystal.num_atoms == num_atoms
    assert crystal.lattice.shape == (3, 3)
    assert crystal.frac_coords.shape == (num_atoms, 3)
    assert crystal.lattice.dtype == crystal.frac_coords.dtype == np.float64
    assert crystal.atom_types.dtype == np.int64
    assert crystal.frac_coords.min() >= 0
    assert crystal.frac_coords.max() < 1
    assert np.linalg.det(crystal.lattice) > 0
    lattice = Lattice(crystal.lattice)
    canonical = Lattice.from_parameters(*lattice.parameters)
    np.testing.assert_allclose(crystal.lattice, canonical.matrix, atol=1e-7)


def assert_same_as_pymatgen(text: str, num_atoms: int) -> None:
    """The number of atoms, the cell and the crystal are those that pymatgen reads."""
    expected = pymatgen_structure(text)
    assert len(expected) == num_atoms
    as_given = read_cif(text, niggli=False)
    assert_valid(as_given, num_atoms)
    np.testing.assert_allclose(as_given.lattice, expected.lattice.matrix, atol=1e-9)
    reduced = read_cif(text)
    assert_valid(reduced, num_atoms)
    for crystal in (as_given, reduced):
        assert MATCHER.fit(to_structure(crystal), expected)
        check_crystal(crystal)


# --- real crystals ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mp_20", "perov_5", "carbon_24", "mpts_52"])
def test_real_crystals_agree_with_pymatgen(name):
    path = DATA / name / "val.csv.gz"
    if not path.exists():
        pytest.skip(f"no crystals at {path}")
    texts = pd.read_csv(path, usecols=["cif"])["cif"].sample(80, random_state=0)
    ties = 0
    for row, text in texts.items():
        crystal = read_cif(text)
        expected = pymatgen_structure(text)
        assert_valid(crystal, len(expected))
        check_crystal(crystal)
        assert MATCHER.fit(to_structure(crystal), expected), row

        # A Niggli cell has the shortest possible lengths, whatever the tolerance. Its angles are
        # unique only up to the tolerance (1e-5): at a tie (equal lengths, right angles,
        # 2 a.b = a.a), two programs may choose different, equally valid cells.
        niggli = expected.get_reduced_structure("niggli").lattice
        ours = Lattice(crystal.lattice)
        np.testing.assert_allclose(ours.lengths, niggli.lengths, atol=1e-3, err_msg=str(row))
        assert ours.volume == pytest.approx(niggli.volume, rel=1e-6)
        angles = np.array(ours.angles)
        assert angles.max() < 90.01 or angles.min() > 89.99
        folded = [np.sort(np.abs(np.array(x.angles) - 90)) for x in (ours, niggli)]
        ties += bool(np.abs(folded[0] - folded[1]).max() > 1e-2)
    assert ties <= 0.03 * len(texts)  # 0.4 % in 3,500 crystals


# --- symmetry ---------------------------------------------------------------------------------

QUARTZ = (4.913, 4.913, 5.405, 90, 90, 120)
QUARTZ_SITES = {  # the second is the mirror image of the first
    "P 32 2 1": ["Si Si 0.4697 0 0.66667", "O O 0.4135 0.2669 0.7858"],
    "P 31 2 1": ["Si Si -0.4697 0 -0.66667", "O O -0.4135 -0.2669 -0.7858"],
}


@pytest.mark.parametrize(
    ("cell", "symmetry", "sites", "num_atoms"),
    [
        pytest.param(
            (5.64, 5.64, 5.64, 90, 90, 90),
            group("F m -3 m"),
            ["Na Na 0 0 0", "Cl Cl 0.5 0.5 0.5"],
            8,
            id="NaCl",
        ),
        pytest.param(
            (3.2094, 3.2094, 5.2108, 90, 90, 120),
            group("P 63/m m c"),
            ["Mg Mg 0.3333 0.6667 0.25"],
            2,
            id="Mg-four-decimals",
        ),
        pytest.param(
            (4.138, 4.138, 28.64, 90, 90, 120),
            group("R -3 m"),
            ["Bi Bi 0 0 0.4", "Te Te 0 0 0", "Te Te 0 0 0.2097"],
            15,
            id="Bi2Te3-hexagonal-axes",
        ),
        pytest.param(
            (4.138, 4.138, 28.64, 90, 90, 120),
            symops(
                *("x,y,z", "-y,x-y,z", "-x+y,-x,z", "y,x,-z", "x-y,-y,-z", "-x,-x+y,-z"),
                *("-x,-y,-z", "y,-x+y,-z", "x-y,x,-z", "-y,-x,z", "-x+y,y,z", "x,x-y,z"),
                *("x+2/3,y+1/3,z+1/3", "-y+2/3,x-y+1/3,z+1/3", "-x+y+2/3,-x+1/3,z+1/3"),
                *("y+2/3,x+1/3,-z+1/3", "x-y+2/3,-y+1/3,-z+1/3", "-x+2/3,-x+y+1/3,-z+1/3"),
                *("-x+2/3,-y+1/3,-z+1/3", "y+2/3,-x+y+1/3,-z+1/3", "x-y+2/3,x+1/3,-z+1/3"),
                *("-y+2/3,-x+1/3,z+1/3", "-x+y+2/3,y+1/3,z+1/3", "x+2/3,x-y+1/3,z+1/3"),
                *("x+1/3,y+2/3,z+2/3", "-y+1/3,x-y+2/3,z+2/3", "-x+y+1/3,-x+2/3,z+2/3"),
                *("y+1/3,x+2/3,-z+2/3", "x-y+1/3,-y+2/3,-z+2/3", "-x+1/3,-x+y+2/3,-z+2/3"),
                *("-x+1/3,-y+2/3,-z+2/3", "y+1/3,-x+y+2/3,-z+2/3", "x-y+1/3,x+2/3,-z+2/3"),
                *("-y+1/3,-x+2/3,z+2/3", "-x+y+1/3,y+2/3,z+2/3", "x+1/3,x-y+2/3,z+2/3"),
            ),
            ["Bi Bi 0.3333 0.6667 0.0667", "Te Te 0 0 0", "Te Te 0 0 0.2097"],
            15,
            id="Bi2Te3-operations",
        ),
        pytest.param(
            (4.5937, 4.5937, 2.9587, 90, 90, 90),
            group("P 42/m n m"),
            ["Ti Ti 0 0 0", "O O 0.30479 0.30479 0"],
            6,
            id="rutile",
        ),
        pytest.param(
            (5.43, 5.43, 5.43, 90, 90, 90),
            "_space_group_IT_number 227",
            ["Si Si 0 0 0"],
            8,
            id="Si-number",
        ),
        pytest.param(QUARTZ, group("P 31 2 1"), QUARTZ_SITES["P 31 2 1"], 9, id="quartz-31"),
        pytest.param(QUARTZ, group("P 32 2 1"), QUARTZ_SITES["P 32 2 1"], 9, id="quartz-32"),
    ],
)
def test_symmetry_agrees_with_pymatgen(cell, symmetry, sites, num_atoms):
    assert_same_as_pymatgen(make_cif(cell, sites, symmetry), num_atoms)


def test_rhombohedral_axes_are_recognized_by_the_angles():
    """Bi2Te3 on rhombohedral axes is the primitive cell of the hexagonal crystal."""
    a, c = 4.138, 28.64
    length = np.sqrt(3 * a**2 + c**2) / 3
    alpha = np.degrees(2 * np.arcsin(3 / (2 * np.sqrt(3 + (c / a) ** 2))))
    sites = ["Bi Bi 0.4 0.4 0.4", "Te Te 0 0 0", "Te Te 0.2097 0.2097 0.2097"]
    hexagonal_sites = ["Bi Bi 0 0 0.4", "Te Te 0 0 0", "Te Te 0 0 0.2097"]
    cell = (length, length, length, alpha, alpha, alpha)
    hexagonal = to_structure(
        read_cif(make_cif((a, a, c, 90, 90, 120), hexagonal_sites, group("R -3 m")))
    )
    for symmetry in (group("R -3 m"), group("R -3 m :R"), "_space_group_IT_number 166"):
        crystal = read_cif(make_cif(cell, sites, symmetry))
        assert_valid(crystal, 5)
        check_crystal(crystal)
        assert StructureMatcher(scale=False, stol=1e-3).fit(to_structure(crystal), hexagonal)


def test_hall_symbol():
    """Origin choice 2 of silicon, which a Hermann-Mauguin name alone cannot specify."""
    hall = "_space_group_name_Hall '-F 4vw 2vw 3'"
    crystal = read_cif(make_cif((5.43, 5.43, 5.43, 90, 90, 90), ["Si Si 0.125 0.125 0.125"], hall))
    assert_valid(crystal, 8)
    check_crystal(crystal, min_distance=2.3)


@pytest.mark.parametrize("digits", [3, 4, 5, 6])
def test_rounded_special_positions_are_merged(digits):
    """(1/3, 2/3, z) and (x, 2x, z) in P6_3/mmc, rounded to a few decimals: Ni3Sn, 8 atoms."""
    third, two_thirds, sixth = (round(x, digits) for x in (1 / 3, 2 / 3, 5 / 6))
    sites = [f"Sn Sn {third} {two_thirds} 0.25", f"Ni Ni {sixth} {two_thirds} 0.25"]
    crystal = read_cif(make_cif((5.29, 5.29, 4.24, 90, 90, 120), sites, group("P 63/m m c")))
    assert np.bincount(crystal.atom_types)[[28, 50]].tolist() == [6, 2]
    assert space_group(crystal) == "P6_3/mmc (194)"


def test_p1_sites_are_not_merged():
    crystal = read_cif(make_cif(CUBIC, ["H H 0 0 0", "H H 0.001 0 0"]), niggli=False)
    assert crystal.num_atoms == 2
    np.testing.assert_array_equal(crystal.frac_coords[1], [0.001, 0, 0])


def test_listed_operations_may_be_in_a_setting_without_a_name():
    symmetry = symops("x,y,z", "-x,-y,-z", "-x,y+1/2,-z+1/2", "x,-y+1/2,z+1/2")
    symmetry += "\n" + group("B 21/c") + "\n_symmetry_Int_Tables_number 14"
    crystal = read_cif(make_cif((5, 6, 7, 90, 105, 90), ["Cu Cu 0.1 0.2 0.3"], symmetry))
    assert crystal.num_atoms == 4


# --- handedness and cells ---------------------------------------------------------------------


@pytest.mark.parametrize(("name", "number"), [("P 31 2 1", 152), ("P 32 2 1", 154)])
@pytest.mark.parametrize("niggli", [True, False])
def test_quartz_keeps_its_handedness(name, number, niggli):
    crystal = read_cif(make_cif(QUARTZ, QUARTZ_SITES[name], group(name)), niggli=niggli)
    assert space_group(crystal).endswith(f"({number})")
    check_crystal(crystal, min_distance=1.5)


def cluster_vectors(crystal: Crystal) -> np.ndarray:
    """The shortest vectors (3, 3) from the first atom to each of the others."""
    cells = np.stack(np.meshgrid(*3 * [np.arange(-4, 5)]), -1).reshape(-1, 3)
    offsets = (crystal.frac_coords[1:] - crystal.frac_coords[0])[:, None] + cells
    vectors = offsets @ crystal.lattice
    return vectors[np.arange(3), np.linalg.norm(vectors, axis=2).argmin(axis=1)]


@pytest.mark.parametrize("left_handed", [False, True])
def test_reduction_and_writing_keep_a_chiral_cluster(left_handed):
    rng = np.random.default_rng(0)
    for _ in range(50):
        crystal = chiral_crystal(rng, left_handed)
        before = cluster_vectors(crystal)
        for other in (niggli_reduce(crystal), read_cif(write_cif(crystal, "x"), niggli=False)):
            after = cluster_vectors(other)
            np.testing.assert_array_equal(other.atom_types, crystal.atom_types)
            np.testing.assert_allclose(after @ after.T, before @ before.T, atol=1e-9)
            assert np.linalg.det(after) == pytest.approx(np.linalg.det(before), abs=1e-9)


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param((4, 5, 6, 110, 115, 100), id="obtuse"),
        pytest.param((4, 4, 4, 60, 60, 60), id="fcc"),
        pytest.param((4, 4, 4, 109.4712206, 109.4712206, 109.4712206), id="bcc"),
        pytest.param((7, 4, 30, 35, 80, 70), id="skewed"),
        pytest.param((4, 4, 9, 90, 90, 60), id="hexagonal-60"),
    ],
)
def test_cells_agree_with_pymatgen(cell):
    assert_same_as_pymatgen(make_cif(cell, ["Na Na 0.1 0.2 0.3", "Cl Cl 0.6 0.6 0.8"]), 2)


# --- sites ------------------------------------------------------------------------------------


def test_coordinates_are_wrapped():
    sites = ["C C -0.25 1.5 2", "N N -1e-17 0.999999999999999999 7.1", "O O -3.5 0.5 .5"]
    crystal = read_cif(make_cif(CUBIC, sites), niggli=False)
    assert_valid(crystal, 3)
    expected = [[0.75, 0.5, 0], [0, 0, 0.1], [0.5, 0.5, 0.5]]
    np.testing.assert_allclose(crystal.frac_coords, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("symbol", "number"),
    [
        ("Fe", 26),
        ("Fe3+", 26),
        ("'O2-'", 8),
        ("FE", 26),
        ("D", 1),
        ("Cs1+", 55),
        ("U", 92),
    ],
)
def test_type_symbols(symbol, number):
    crystal = read_cif(make_cif(CUBIC, [f"x1 {symbol} 0 0 0"]))
    assert crystal.atom_types.tolist() == [number]


def test_labels_are_used_if_there_are_no_type_symbols():
    sites = ["Fe1 0 0 0", "Fe2A 0.5 0.5 0", "O_1 0.5 0.5 0.5"]
    crystal = read_cif(make_cif(CUBIC, sites, columns="label fract_x fract_y fract_z"))
    assert crystal.atom_types.tolist() == [26, 26, 8]


def test_standard_uncertainties():
    cell = ("5.43(2)", "5.4310(15)", "6", "90.0(1)", "90", "90")
    crystal = read_cif(make_cif(cell, ["Si Si 0.125(3) 0 0"]), niggli=False)
    np.testing.assert_allclose(np.linalg.norm(crystal.lattice, axis=1), [5.43, 5.431, 6])
    np.testing.assert_allclose(crystal.frac_coords, [[0.125, 0, 0]])


def test_one_atom_without_a_loop():
    sites = "_atom_site_label Po1\n" + "\n".join(f"_atom_site_fract_{x} 0" for x in "xyz")
    text = make_cif((3.35, 3.35, 3.35, 90, 90, 90), []).split("loop_")[0] + sites
    assert read_cif(text).atom_types.tolist() == [84]


def test_full_occupancies():
    columns = "type_symbol fract_x fract_y fract_z occupancy"
    sites = ["Na 0 0 0 1.0", "Cl 0.5 0.5 0.5 ?", "Na 0.5 0 0 0.9995(9)", "Cl 0 0.5 0 ."]
    assert read_cif(make_cif(CUBIC, sites, columns=columns)).num_atoms == 4


def test_first_block_with_atoms_is_read():
    text = make_cif(CUBIC, ["Na Na 0 0 0"])
    second = text.replace("data_test", "data_other").replace("Na Na", "K K")
    assert read_cif("data_global\n_publ_author 'A. B.'\n" + text + second).atom_types == [11]
    with pytest.raises(CrystalError, match="not a number"):
        read_cif(text.replace("0 0 0", "? 0 0") + second)


# --- rejections -------------------------------------------------------------------------------

SALT = make_cif(CUBIC, ["Na Na 0 0 0", "Cl Cl 0.5 0.5 0.5"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty CIF"),
        (" \n\t", "empty CIF"),
        (float("nan"), "empty CIF"),
        ("hello", "not valid CIF"),
        ("data_x\nloop_\n_a\n_b\n1 2 3\n", "not valid CIF"),
        (SALT + SALT, "not valid CIF.*duplicate"),
        ("data_x\n_cell_length_a 3\n", "no atoms"),
        (make_cif(CUBIC, []), "no atoms"),
        ("data_x\n" + SALT[SALT.index("loop_") :], "_cell_length_a is missing"),
        (SALT.replace("_cell_angle_beta 90", ""), "_cell_angle_beta is missing"),
        (SALT.replace("_cell_angle_beta 90", "_cell_angle_beta ?"), r"_cell_angle_beta is \?"),
        (SALT.replace("_cell_length_b 4.0", "_cell_length_b 0"), "length 0.0 Å is not positive"),
        (SALT.replace("_cell_length_b 4.0", "_cell_length_b -4"), "length -4.0 Å is not positive"),
        (SALT.replace("_cell_angle_beta 90", "_cell_angle_beta 180"), "not between 0 and 180"),
        (make_cif((4, 4, 4, 30, 30, 90), ["C C 0 0 0"]), "no cell has these three angles"),
        (make_cif((4, 4, 4, 120, 120, 120), ["C C 0 0 0"]), "no cell has these three angles"),
        (make_cif(("inf", 4, 4, 90, 90, 90), ["C C 0 0 0"]), "_cell_length_a is inf"),
        (SALT.replace("0.5 0.5 0.5", "0.5 ? 0.5"), r"_atom_site_fract_y of atom 1 is \?"),
        (SALT.replace("0.5 0.5 0.5", "0.5 0.5 ."), r"_atom_site_fract_z of atom 1 is \."),
        (SALT.replace("0.5 0.5 0.5", "nan 0.5 0.5"), "_atom_site_fract_x of atom 1 is nan"),
        (SALT.replace("0.5 0.5 0.5", "0.5 0.5 1e999"), "_atom_site_fract_z of atom 1 is 1e999"),
        (SALT.replace("0.5 0.5 0.5", "1/2 0.5 0.5"), "_atom_site_fract_x of atom 1 is 1/2"),
        (SALT.replace("Cl Cl", "Cl Xx"), "'Xx' is not an element"),
        (SALT.replace("Cl Cl", "Cl X"), "'X' is not an element"),
        (SALT.replace("Cl Cl", "Cl Wat"), "'Wat' is not an element"),
        (SALT.replace("Cl Cl", "Cl Va"), "'Va' is not an element"),
        (SALT.replace("Cl Cl", "Cl ?"), r"'\?' is not an element|'' is not an element"),
        (SALT.replace("0.5 0.5 0.5", "0 0 0"), "two sites share one position"),
        (SALT.replace("0.5 0.5 0.5", "-1 2 1.0"), "two sites share one position"),
        (SALT.replace("0.5 0.5 0.5", "0 0 0.99999"), "two sites share one position"),
        (make_cif(CUBIC, ["C C 0 0 0"], symops("x,y,w")), "'x,y,w' cannot be read"),
        (make_cif(CUBIC, ["C C 0 0 0"], symops("x,x,z")), "does not preserve the volume"),
        (make_cif(CUBIC, ["C C 0 0 0"], group("Q 7")), "unknown space group 'Q 7'"),
        (make_cif(CUBIC, ["C C 0 0 0"], "_space_group_IT_number 999"), "unknown space group"),
        (make_cif(CUBIC, ["C C 0 0 0"], "_space_group_name_Hall nonsense"), "Hall symbol"),
        (
            make_cif(CUBIC, ["C C 0 0 0"], "_space_group_magn.number_BNS 62.448"),
            "magnetic symmetry",
        ),
        (
            make_cif(CUBIC, ["C C 0.1 0.2 0.3", "C C 0.9 0.8 0.7"], symops("x,y,z", "-x,-y,-z")),
            "two sites share one position",
        ),
    ],
)
def test_rejected_with_a_reason(text, reason):
    with pytest.raises(CrystalError, match=reason) as caught:
        read_cif(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("occupancy", ["0.5", "0.99", "0", "2", "0.5(1)", "nan", "full"])
def test_partial_occupancy_is_rejected(occupancy):
    columns = "type_symbol fract_x fract_y fract_z occupancy"
    text = make_cif(CUBIC, ["Na 0 0 0 1", f"Cl 0.5 0.5 0.5 {occupancy}"], columns=columns)
    with pytest.raises(CrystalError, match="atom 1 has occupancy"):
        read_cif(text)


def test_malicious_sizes_are_rejected_quickly():
    many_operations = symops(*("x,y,z" for _ in range(200_000)))
    many_atoms = [f"C C 0.1 0.2 0.{i}" for i in range(100_000)]
    some_atoms = [f"C C 0.1 0.2 0.{i}" for i in range(1000, 2000)]
    texts = {
        make_cif(CUBIC, ["C C 0 0 0"], many_operations): "200000 symmetry operations",
        make_cif(CUBIC, many_atoms): "100000 sites: more than 10000 atoms",
        make_cif(CUBIC, some_atoms, group("F m -3 m")): "1000 sites under 192 symmetry",
    }
    start = time.perf_counter()
    for text, reason in texts.items():
        with pytest.raises(CrystalError, match=reason):
            read_cif(text)
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("length", ["1e-200", "1e-5", "1e9", "1e200"])
@pytest.mark.parametrize("angle", ["90", "0.001", "179.999", "60"])
def test_absurd_cells_are_rejected_or_read(length, angle):
    """A cell that parses raises CrystalError or nothing."""
    text = make_cif((length, 4, 4, 90, 90, angle), ["C C 0 0 0"])
    for niggli in (True, False):
        try:
            check_crystal(read_cif(text, niggli=niggli))
        except CrystalError as error:
            assert str(error)  # noqa: PT017


# --- write_cif --------------------------------------------------------------------------------


def test_round_trip_is_exact_in_float32():
    rng = np.random.default_rng(0)
    for _ in range(50):
        crystal = niggli_reduce(chiral_crystal(rng))
        single = Crystal(
            crystal.lattice, crystal.atom_types, crystal.frac_coords.astype(np.float32)
        )
        again = read_cif(write_cif(single, "C N O F\n'x'"), niggli=False)
        np.testing.assert_array_equal(again.frac_coords, single.frac_coords)
        np.testing.assert_array_equal(again.atom_types, crystal.atom_types)
        np.testing.assert_allclose(again.lattice, crystal.lattice, rtol=1e-12, atol=1e-12)


def test_pymatgen_can_read_the_written_cif():
    text = write_cif(salt(), "salt")
    assert text.startswith("data_salt\n")
    assert MATCHER.fit(pymatgen_structure(text), to_structure(salt()))


def test_writing_rejects_an_invalid_crystal():
    with pytest.raises(CrystalError, match="atomic number 0 is not an element"):
        write_cif(salt(atom_types=np.array([0, 17])), "x")
    with pytest.raises(CrystalError, match="no volume"):
        write_cif(salt(lattice=np.zeros((3, 3))), "x")
