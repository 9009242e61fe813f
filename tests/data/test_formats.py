"""One reader for each format; a damaged part costs that part alone; handedness is kept."""

import bz2
import gzip
import json
import lzma
import sqlite3
import zipfile
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
import spglib
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.cif import read_cif, write_cif
from src.data.crystal import Crystal, CrystalError, orient
from src.data.readers import Record, crystal_of
from src.data.structures import StructureReader, to_atoms, to_structure, write_structures
from src.data.structures.poscar import read_poscar, write_poscar
from tests.data.test_cif import QUARTZ, QUARTZ_SITES, group, make_cif
from tests.data.test_crystal import chiral_crystal, salt

pytestmark = pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning")

CIF = write_cif(salt(), "salt")


def read(path: Path, **options) -> list[Record]:
    return list(StructureReader(path, **options))


def crystals(path: Path) -> list[Crystal]:
    return [crystal_of(record) for record in read(path)]


def content(path: Path) -> list[str]:
    """The formula of each crystal, or the reason why it is rejected."""
    found = []
    for record in read(path):
        try:
            found.append(to_structure(crystal_of(record)).formula)
        except CrystalError as error:
            found.append(str(error))
    return found


# Names and packing


@pytest.mark.parametrize("name", ["a.cif", "A.CIF", "a.mcif", "a.Cif.GZ", "a.cif.bz2", "a.CIF.Xz"])
def test_a_cif_is_a_cif_whatever_its_ending(tmp_path, name):
    text = make_cif((4, 4, 4, 90, 90, 90), ["x FE 0 0 0", "y Cl 0.5 0.5 0.5"])
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    path = tmp_path / name
    path.write_bytes(pack.get(path.suffix.lower(), bytes)(text.encode()))
    assert content(path) == ["Fe1 Cl1"]
    assert read(path)[0].id == name[0]
    with zipfile.ZipFile(tmp_path / "all.ZIP", "w") as archive:
        archive.write(path, name)
    assert content(tmp_path / "all.ZIP") == ["Fe1 Cl1"]


@pytest.mark.parametrize("name", ["contcar", "POSCAR.bz2", "x.contcar", "Poscar_1.XZ", "a.VASP.gz"])
def test_a_poscar_is_a_poscar_whatever_its_name(tmp_path, name):
    write_structures(tmp_path / name, [to_structure(salt())], ["x"])
    assert content(tmp_path / name) == ["Na1 Cl1"]


def test_a_packed_file_is_detected_by_its_content(tmp_path):
    ase.io.write(tmp_path / "a.traj", [bulk("Cu"), bulk("Al")])
    (tmp_path / "b.TRAJ.xz").write_bytes(lzma.compress((tmp_path / "a.traj").read_bytes()))
    assert content(tmp_path) == ["Cu1", "Al1"] * 2


def test_a_format_that_need_not_list_all_atoms_is_refused(tmp_path):
    ase.io.write(tmp_path / "a.lmp", bulk("Cu"), format="lammps-data")
    (reason,) = content(tmp_path / "a.lmp")
    assert "need not list all atoms" in reason or "not in a format" in reason


def test_what_ase_says_of_a_symbol_that_it_does_not_know(tmp_path):
    for symbol in ("Cu", "D", "Wat"):
        text = f"1 F\n{symbol}\n1 1 0 0 0\n0 0 0\n4 0 0\n0 4 0\n0 0 4\n"
        (tmp_path / f"{symbol}.gen").write_text(text)
    assert content(tmp_path) == [
        "Cu1", "'D' is not an element: write H for deuterium", "'Wat' is not an element"
    ]  # fmt: skip


ESPRESSO = """&SYSTEM
 ibrav=0, nat=1, ntyp=1{}
/
ATOMIC_SPECIES
Cu 63.5 cu
CELL_PARAMETERS angstrom
3 0 0
0 3 0
0 0 3
ATOMIC_POSITIONS crystal
Cu 0 0 0
"""


def test_an_asymmetric_unit_is_not_taken_for_the_cell(tmp_path):
    (tmp_path / "a.pwi").write_text(ESPRESSO.format(""))
    (tmp_path / "b.pwi").write_text(ESPRESSO.format(", space_group = 225"))
    found = content(tmp_path)
    assert found[0] == "Cu1"
    assert "list all atoms of the cell" in found[1]


def test_a_cif_is_found_by_its_content(tmp_path):
    for name, text in (("a.txt", CIF), ("b", f"# from mail\n\n{CIF}"), ("c.txt", "data_ only")):
        (tmp_path / name).write_text(text)
    assert content(tmp_path)[:2] == ["Na1 Cl1"] * 2
    (tmp_path / "d.cif.zst").write_bytes(b"(\xb5/\xfd")
    assert "not in a format" in content(tmp_path)[2]
    assert "packed as .zst, which is not read" in content(tmp_path)[3]


# SHELX and PDB

RES = """TITL quartz
CELL 1.5418 4.913 4.913 5.405 90 90 120
LATT -1
SYMM -y,x-y,z+2/3
SYMM -x+y,-x,z+1/3
SYMM y,x,-z
SYMM x-y,-y,-z+1/3
SYMM -x,-x+y,-z+2/3
SFAC Si O
Si1 1 0.4697 0 0.66667 10.50000 0.01
O1 2 0.4135 0.2669 0.7858 11.00000 0.01 =
 0.02 0.02
HKLF 4
END
Q1 1 0.1 0.1 0.1 11.0 0.05 1.2
"""


def test_the_symmetry_of_shelx_files(tmp_path):
    (tmp_path / "a.res").write_text(RES)
    (tmp_path / "c.res").write_text(RES.replace("11.00000", "10.50000"))
    (tmp_path / "d.res").write_text(RES.replace("LATT -1", "LATT 1"))
    (tmp_path / "b.INS").write_text(
        RES.replace("10.50000", "1.0").replace("HKLF", "Q1 1 .1 .1 .1 11 .05\nHKLF")
    )
    (tmp_path / "e.res").write_text(RES + RES.replace("SFAC Si O", "SFAC Si Q"))
    found = content(tmp_path)
    assert found[:2] == ["Si3 O6"] * 2
    assert "not an ordered crystal" in found[2]
    assert found[4] == "Si3 O6"
    assert "has no element" in found[5]
    expected = read_cif(make_cif(QUARTZ, QUARTZ_SITES["P 32 2 1"], group("P 32 2 1")), niggli=False)
    np.testing.assert_allclose(crystals(tmp_path / "a.res")[0].frac_coords, expected.frac_coords)


def pdb(name: str, occupancy: float = 1) -> str:
    atoms = [("C", 1, 1, 1), ("O", 2, 1, 1)]
    lines = [f"CRYST1    5.000    6.000    7.000  90.00 105.00  90.00 {name:<11}"]
    lines += [
        f"HETATM{i:5d}  {e:<3} LIG A   1    {x:8.3f}{y:8.3f}{z:8.3f}{occupancy:6.2f}  0.00"
        f"          {e:>2}"
        for i, (e, x, y, z) in enumerate(atoms, 1)
    ]
    return "\n".join([*lines, "END", ""])


def test_the_symmetry_and_occupancies_of_pdb_files(tmp_path):
    (tmp_path / "a.pdb").write_text(pdb("P 1 21 1"))
    (tmp_path / "b.PDB").write_text(pdb("P 1"))
    (tmp_path / "c.ent").write_text(pdb("P 1", occupancy=0.5))
    (tmp_path / "d.pdb").write_text(pdb("P 1").replace("CRYST1", "REMARK"))
    (tmp_path / "e.pdb").write_text(pdb("P 1").replace("C   LIG", "C  ALIG"))
    scale = "".join(
        f"SCALE{i}    {' '.join(f'{0.3 * (i == j):9.6f}' for j in (1, 2, 3))}        0.00000\n"
        for i in (1, 2, 3)
    )
    (tmp_path / "f.pdb").write_text(pdb("P 1").replace("HETATM    1", f"{scale}HETATM    1"))
    first, second, third, fourth, fifth, sixth = content(tmp_path)
    assert (first, second) == ("C2 O2", "C1 O1")
    assert "occupancy 0.5" in third
    assert "not periodic" in fourth
    assert "alternative A" in fifth
    assert "SCALE" in sixth


# A damaged part costs that part alone


def test_blank_lines_and_damaged_frames_of_extended_xyz(tmp_path):
    frame = '2\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 id={}\n{}\n{}\n'
    good = [frame.format(i, "D 0 0 0", "Cl 2 2 2") for i in ("007", "1e5", "NaN", "T")]
    text = "".join([
        "\n", good[0], "\n\n", good[1],
        frame.format("few", "Na 0 0 0", "").replace("\n\n", "\n"),  # one atom instead of two
        good[2],
        frame.format("no", "Na 0 0 0", "Cl 2 2 2").replace("2", "two", 1),
        frame.format("many", "Na 0 0 0", "Na 1 1 1\nCl 2 2 2"),
        frame.format("unknown", "Wat 0 0 0", "Cl 2 2 2"),
        good[3],
    ])  # fmt: skip
    (tmp_path / "a.xyz").write_text(text)
    found = content(tmp_path / "a.xyz")
    assert [record.id for record in read(tmp_path / "a.xyz")] == [
        "007", "1e5", "few", "NaN", "no", "many", "unknown", "T"
    ]  # fmt: skip
    assert [i for i, each in enumerate(found) if each == "H1 Cl1"] == [0, 1, 3, 7]
    assert "says 2 atoms, but has 1" in found[2]
    assert "'two' is not a number of atoms" in found[4]
    assert "says 2 atoms, but has 3" in found[5]
    assert found[6] == "'Wat' is not an element"


def test_blocks_of_one_name_and_damaged_blocks_of_a_cif(tmp_path):
    damaged = CIF.replace("loop_", "loop_\n_odd", 1)
    empty = CIF[: CIF.rindex("_z") + 3]  # cut off after the tags of the last table
    text_field = "data_text\n_note\n;\ndata_no_block\n_atom_site_fract_x\n;\n"
    (tmp_path / "a.cif").write_text(
        "data_global\n_a b\n" + CIF + damaged + text_field + CIF + empty
    )
    found = content(tmp_path / "a.cif")
    assert (found[0], found[2]) == ("Na1 Cl1",) * 2
    assert "not valid CIF" in found[1]
    assert "no atoms" in found[3]
    assert len(found) == 4


def test_damaged_entries_of_json(tmp_path):
    good = to_structure(salt()).as_dict()
    (tmp_path / "a.json").write_text(json.dumps([good, {"lattice": {}, "sites": []}, good]))
    lines = [json.dumps({"id": "x", "structure": good}), '{"id": ', "", json.dumps(good)]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    (tmp_path / "c.json").write_text(f"{lines[0]}\n{lines[3]}\n")
    (tmp_path / "d.json").write_text("[]")
    (tmp_path / "e.jsonl").write_text(json.dumps(good, indent=1))
    found = content(tmp_path)
    assert [i for i, each in enumerate(found) if each == "Na1 Cl1"] == [0, 2, 3, 5, 6, 7, 9]
    assert found[8:] == ["the JSON has no crystals", "Na1 Cl1"]
    assert [record.id for record in read(tmp_path / "b.jsonl")] == ["x", "b-1", "b-2"]


def test_a_damaged_row_of_a_database(tmp_path):
    path = tmp_path / "a.db"
    with ase.db.connect(path) as database:
        for name in ("Cu", "Al", "Ni"):
            database.write(bulk(name))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE systems SET numbers = x'00', natoms = 7 WHERE id = 2")
    connection.close()
    found = content(path)
    assert (found[0], found[2]) == ("Cu1", "Ni1")
    assert len(found) == 3


# POSCAR


HEAD = "x\n{scale}\n4 0 0\n0 4 0\n0 0 4\n"


@pytest.mark.parametrize(
    ("text", "volume", "last"),
    [
        (HEAD.format(scale=1) + "Na Cl\n1 1\nDirect\n0 0 0\n.5 .5 .5\n", 64, 0.5),
        (HEAD.format(scale="-100") + "Na Cl\n1 1\nCartesian\n0 0 0\n2 2 2\n", 100, 0.5),
        (HEAD.format(scale="1 1 2") + "Na Cl\n1 1\nc\n0 0 0\n2 2 2\n", 128, 0.5),
        (HEAD.format(scale="2.0 ! x") + "Na Cl\n1 1\nKart\n0 0 0\n1 1 1\n", 512, 0.25),
        (
            HEAD.format(scale="1.0d0") + "Na_pv Cl/0abc\n 1 1\nSelective\nDirect\n0 0 0 T T F\n"
            "0.5 0.5 0.5 F F F Cl\n\n0 0 0\n", 64, 0.5,
        ),
        (
            HEAD.format(scale=1) + "Na Cl\n1 1\nDirect\n0 0 0\n.5 .5 .5\nLattice velocities\n 1\n"
            + "0 0 0\n" * 6, 64, 0.5,
        ),
        (HEAD.format(scale=1) + "1 1\nDirect\n0 0 0 Na\n.5 .5 .5 Cl\n", 64, 0.5),
        (HEAD.format(scale=1) + "Na\nCl\n1\n1\nDirect\n0 0 0\n.5 .5 .5\n", 64, 0.5),
    ],
)  # fmt: skip
def test_variants_of_a_poscar(text, volume, last):
    crystal = read_poscar(text)
    assert crystal.atom_types.tolist() == [11, 17]
    assert abs(np.linalg.det(crystal.lattice)) == pytest.approx(volume)
    np.testing.assert_allclose(crystal.frac_coords, [[0, 0, 0], [last] * 3], atol=1e-12)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (HEAD.format(scale="1 2") + "Na\n1\nDirect\n0 0 0\n", "scale"),
        (HEAD.format(scale="-1 2 2") + "Na\n1\nDirect\n0 0 0\n", "scale"),
        (HEAD.format(scale=1) + "1\nDirect\n0 0 0\n", "does not say which elements"),
        (HEAD.format(scale=1) + "Wat\n1\nDirect\n0 0 0\n", "'Wat' in the POSCAR is not an element"),
        (HEAD.format(scale=1) + "H.5\n1\nDirect\n0 0 0\n", "is not an element"),
        (HEAD.format(scale=1) + "Na\n2\nDirect\n0 0 0\n", "ends where"),
        (HEAD.format(scale=1) + "Na\n1\nDirect\n0 0 0\n.5 .5 .5\n", "more positions"),
        (HEAD.format(scale=1) + "Na\n1 1\nDirect\n0 0 0\n0 0 .5\n", "1 elements, but 2 numbers"),
        (2 * (HEAD.format(scale=1) + "Na\n1\nDirect\n0 0 0\n\n"), "several POSCARs"),
        (HEAD.format(scale=1) + "Na\n1\n0 0 0\n", "where Direct or Cartesian is expected"),
        (HEAD.format(scale=1) + "Na\n1\nDirect\n0 0 0 Cl\n", "Na by line 6, but Cl"),
        (HEAD.format(scale=1) + "Na\n1\nDirect\n0 x 0\n", "does not have 3 numbers"),
    ],
)
def test_a_poscar_that_is_not_understood(text, reason):
    with pytest.raises(CrystalError, match=reason):
        read_poscar(text)


# Handedness

WRITTEN = ("a.cif", "POSCAR", "a.vasp.bz2", "a.extxyz", "a.json", "a.xyz.gz")


@pytest.mark.parametrize("name", ["P 31 2 1", "P 32 2 1"])
@pytest.mark.parametrize("left_handed", [False, True])
def test_quartz_keeps_its_hand_in_every_format(tmp_path, name, left_handed):
    crystal = read_cif(make_cif(QUARTZ, QUARTZ_SITES[name], group(name)), niggli=False)
    if left_handed:  # the same crystal in another basis
        swap = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]])
        crystal = Crystal(swap @ crystal.lattice, crystal.atom_types, crystal.frac_coords @ swap)
        assert np.linalg.det(crystal.lattice) < 0
    for file in WRITTEN:
        write_structures(tmp_path / file, [to_structure(crystal)], ["x"])
        (again,) = crystals(tmp_path / file)
        cell = (again.lattice, again.frac_coords, again.atom_types)
        found = spglib.get_spacegroup(cell, symprec=1e-4)
        assert found.replace("_", "").split()[0] == name.replace(" ", ""), file
        assert again.atom_types.tolist() == crystal.atom_types.tolist()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), left_handed=st.booleans(), file=st.sampled_from(WRITTEN))
def test_what_is_written_reads_back_as_the_same_crystal(tmp_path_factory, seed, left_handed, file):
    """Order, species, distances and handedness of chiral crystals in skewed cells."""
    crystal = chiral_crystal(np.random.default_rng(seed), left_handed)
    path = tmp_path_factory.mktemp("written") / file
    write_structures(path, [to_structure(crystal)], ["x"])
    (again,) = crystals(path)
    assert again.atom_types.tolist() == crystal.atom_types.tolist()
    one, other = orient(crystal), orient(again)
    np.testing.assert_allclose(other.lattice, one.lattice, atol=1e-6)
    offsets = other.frac_coords - one.frac_coords
    np.testing.assert_allclose(offsets, np.rint(offsets), atol=1e-6)


def test_a_poscar_has_a_right_handed_cell():
    crystal = chiral_crystal(np.random.default_rng(0), left_handed=True)
    again = read_poscar(write_poscar(crystal, "x\ny"))
    assert np.linalg.det(crystal.lattice) < 0 < np.linalg.det(again.lattice)
    with pytest.raises(CrystalError, match="not that of an element"):
        write_poscar(salt(atom_types=np.array([0, 17])), "x")


@pytest.mark.parametrize("occupancy", [".", "?", "0.9995", 1.0])
def test_full_occupancies_of_ase(occupancy):
    from src.data.structures import to_crystal

    atoms = to_atoms(salt())
    atoms.info["occupancy"] = {"0": {"Na": occupancy}, "1": {"Cl": 1}}
    assert to_crystal(atoms).num_atoms == 2
    atoms.arrays["occupancies"] = np.array([1, 0.5])
    with pytest.raises(CrystalError, match="not an ordered crystal"):
        to_crystal(atoms)
