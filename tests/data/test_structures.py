import gzip
import json
import pickle
import shutil
import sqlite3
import zipfile
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pandas as pd
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from pymatgen.core import Lattice, Structure

from src.data import CrystalBatch, DataError, DataModule
from src.data.cif import Crystal, CrystalError
from src.data.dataset import ReadOptions, read_record
from src.data.readers import Record
from src.data.structures import (
    NamedStructure,
    Skipped,
    StructureReader,
    iter_structures,
    read_structures,
    split_batch,
    to_atoms,
    to_crystal,
    to_structure,
    write_structures,
    written_name,
)
from src.utils.errors import UserError
from tests.crystals import rock_salt

TRICLINIC = Lattice.from_parameters(3.1, 4.2, 5.3, 81, 95, 107)


@pytest.fixture
def crystal() -> Structure:
    """Three elements in a triclinic cell; the two O atoms are not adjacent in the list."""
    coords = [[0, 0, 0], [0.5, 0.5, 0.48], [0.51, 0.02, 0.5], [0.99, 0.5, 0.03]]
    return Structure(TRICLINIC, ["Sr", "O", "Ti", "O"], coords)


def ids(path: Path) -> list[str]:
    return [item.id for item in read_structures(path)[0]]


def assert_same(one: Structure, other: Structure, atol: float = 1e-6) -> None:
    assert one.atomic_numbers == other.atomic_numbers
    np.testing.assert_allclose(one.lattice.parameters, other.lattice.parameters, atol=atol)
    offset = one.frac_coords - other.frac_coords
    np.testing.assert_allclose(offset, np.rint(offset), atol=atol)


# Formats


NAMES = ["a.cif", "POSCAR", "CONTCAR.mp-2", "a.vasp", "a.extxyz", "a.json", "a.json.gz"]


@pytest.mark.parametrize("name", NAMES)
def test_written_files_read_back(tmp_path, crystal, name):
    path = tmp_path / "deep" / name
    write_structures(path, [crystal], ["mine"])
    (item,), skipped = read_structures(path)
    assert skipped == []
    assert_same(item.structure, crystal)
    assert item.source == Path(name)
    stem = name if name.startswith(("POSCAR", "CONTCAR")) else name.split(".")[0]
    assert item.id == ("mine" if name == "a.extxyz" else stem.removesuffix(".gz"))


@pytest.mark.parametrize("name", ["a.cif", "a.xyz", "a.json", "a.cif.gz"])
def test_several_crystals_in_one_file(tmp_path, crystal, name):
    others = [crystal, Structure(TRICLINIC.scale(30), ["C"], [[0.1, 0.2, 0.3]]), crystal]
    write_structures(tmp_path / name, others, ["x", "y", "z"])
    found, skipped = read_structures(tmp_path)
    assert skipped == []
    for item, structure in zip(found, others, strict=True):
        assert_same(item.structure, structure)
    assert [item.id for item in found] == (
        ["x", "y", "z"] if name == "a.xyz" else ["a-0", "a-1", "a-2"]
    )


@pytest.mark.parametrize("name", ["a.cif", "POSCAR", "a.json"])
def test_files_written_by_pymatgen(tmp_path, crystal, name):
    crystal.add_oxidation_state_by_element({"Sr": 2, "Ti": 4, "O": -2})
    crystal.to(str(tmp_path / name))
    (item,), _ = read_structures(tmp_path)
    crystal.remove_oxidation_states()
    assert_same(item.structure, crystal, atol=1e-5)
    assert {type(specie).__name__ for specie in item.structure.species} == {"Element"}


@pytest.mark.parametrize("name", ["a.cif", "POSCAR", "a.extxyz", "a.traj", "a.gen"])
def test_files_written_by_ase(tmp_path, crystal, name):
    atoms = crystal.to_ase_atoms()
    atoms = atoms[np.argsort(atoms.numbers)] if name in ("POSCAR", "a.gen") else atoms
    ase.io.write(tmp_path / name, atoms)
    (item,), _ = read_structures(tmp_path)
    assert_same(item.structure, to_structure(to_crystal(atoms)), atol=1e-5)
    assert written_name(item.source).name == (
        f"{name}.extxyz" if name in ("a.traj", "a.gen") else name
    )


def test_symmetry_of_a_cif_is_applied(tmp_path):
    rocksalt = rock_salt(5.64, "Na", "Cl")
    rocksalt.to(str(tmp_path / "a.cif"), symprec=0.01)
    assert "x, y, z" in (tmp_path / "a.cif").read_text()
    (item,), _ = read_structures(tmp_path)
    assert item.structure.formula == "Na4 Cl4"
    assert item.structure.lattice.parameters == pytest.approx((5.64,) * 3 + (90,) * 3)


def test_ids_of_an_extxyz(tmp_path):
    frames = [bulk("Cu"), bulk("Fe"), bulk("Al")]
    frames[1].info["material_id"] = "mp-13"
    frames[2].info |= {"id": 7, "material_id": "mp-134"}
    ase.io.write(tmp_path / "f.extxyz", frames)
    assert ids(tmp_path / "f.extxyz") == ["f-0", "mp-13", "7"]


# Folders and archives


def test_a_folder_is_searched_at_any_depth_in_order(tmp_path, crystal):
    for name in ("b/c/x.1.cif", "b/POSCAR", "a.vasp", ".hidden/y.cif", "b/.z.cif"):
        write_structures(tmp_path / name, [crystal], ["x"])
    assert ids(tmp_path) == ["a", "b/POSCAR", "b/c/x.1"]


def test_an_archive_is_read_like_a_folder(tmp_path, crystal):
    write_structures(tmp_path / "a.cif", [crystal], ["a"])
    write_structures(tmp_path / "f.extxyz", [crystal] * 2, ["u", "v"])
    (tmp_path / "in").mkdir()
    archive = tmp_path / "in" / "all.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name, inside in (
            ("a.cif", "q/a.cif"), ("f.extxyz", "f.extxyz"), ("a.cif", "../../out.cif"),
            ("a.cif", "/abs.cif"), ("a.cif", "__MACOSX/._a.cif"),
        ):  # fmt: skip
            file.write(tmp_path / name, inside)
        file.mkdir("empty")
    found, skipped = read_structures(archive)
    assert skipped == []
    assert [(item.id, str(item.source)) for item in found] == [
        ("abs", "abs.cif"), ("u", "f.extxyz"), ("v", "f.extxyz"), ("q/a", "q/a.cif")
    ]  # fmt: skip
    assert [str(item.source) for item in read_structures(tmp_path / "in")[0]] == [
        f"all.zip/{item.source}" for item in found
    ]


def test_reading_is_a_stream(tmp_path, crystal):
    for i in range(3):
        write_structures(tmp_path / f"{i}.cif", [crystal], ["x"])
    items = iter_structures(tmp_path)
    assert isinstance(next(items), NamedStructure)
    (tmp_path / "2.cif").write_text("")
    assert [type(item) for item in items] == [NamedStructure, Skipped]


def test_real_crystals(tmp_path, shared_data):
    texts = pd.read_csv(shared_data / "mp_20" / "val.csv.gz", nrows=30)["cif"]
    for i, text in enumerate(texts):
        (tmp_path / f"{i:02d}.cif").write_text(text)
    found, skipped = read_structures(tmp_path)
    assert (len(found), len(skipped)) == (30, 0)
    for suffix in ("extxyz", "json", "cif"):
        path = tmp_path / suffix / f"all.{suffix}"
        write_structures(path, [f.structure for f in found], [f.id for f in found])
        for old, new in zip(found, read_structures(path)[0], strict=True):
            assert_same(old.structure, new.structure, atol=1e-5)


# Files that cannot be read


def bad_files(folder: Path, crystal: Structure) -> dict[str, str]:
    """Write files that cannot be read. Returns part of the expected reason for each."""
    half = Structure(TRICLINIC, [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])
    half.to(str(folder / "half.cif"))
    (folder / "half.json").write_text(json.dumps(half.as_dict()))
    dummy = Structure(TRICLINIC, ["X"], [[0, 0, 0]])
    (folder / "dummy.json").write_text(json.dumps(dummy.as_dict()))
    ase.io.write(folder / "water.xyz", molecule("H2O"))
    slab = bulk("Cu")
    slab.pbc = (True, True, False)
    ase.io.write(folder / "slab.extxyz", slab)
    open_cell = Structure(Lattice(np.eye(3) * 3, pbc=(True, True, False)), ["H"], [[0, 0, 0]])
    (folder / "slab.json").write_text(json.dumps(open_cell.as_dict()))
    (folder / "vasp4.vasp").write_text("x\n1\n3 0 0\n0 3 0\n0 0 3\n1\nDirect\n0 0 0\n")
    (folder / "empty.cif").write_text("")
    (folder / "bytes.cif").write_bytes(bytes(range(256)))
    (folder / "other.json").write_text('{"a": 1}')
    (folder / "cut.json").write_text('{"lattice": ')
    (folder / "cut.zip").write_bytes(b"PK")
    (folder / "notes.txt").write_text("hello")
    flat = "1\nLattice='3 0 0 6 0 0 0 0 3' Properties=species:S:1:pos:R:3 pbc='T T T'\nH 0 0 0\n"
    (folder / "flat.xyz").write_text(flat)
    write_structures(folder / "whole.extxyz", [crystal, crystal], ["x", "y"])
    text = (folder / "whole.extxyz").read_text()
    (folder / "cut.extxyz").write_text(text[: len(text) - 60])
    (folder / "whole.extxyz").unlink()
    return {
        "half.cif": "not an ordered crystal",
        "half.json": "not an ordered crystal",
        "dummy.json": "an atom has no element",
        "water.xyz": "not periodic",
        "slab.extxyz": "not periodic",
        "slab.json": "not periodic",
        "vasp4.vasp": "does not say which elements",
        "empty.cif": "empty CIF",
        "bytes.cif": "not valid CIF",
        "other.json": "not a pymatgen Structure",
        "cut.json": "JSONDecodeError",
        "cut.zip": "BadZipFile",
        "notes.txt": "not in a format that can be read",
        "flat.xyz": "not periodic",
        "cut.extxyz, frame 1": "XYZError",
    }


@pytest.mark.filterwarnings("ignore:dict interface is deprecated")
def test_files_that_cannot_be_read_are_listed_with_reasons(tmp_path, crystal):
    expected = bad_files(tmp_path, crystal)
    write_structures(tmp_path / "good.cif", [crystal], ["good"])
    found, skipped = read_structures(tmp_path)
    assert [item.id for item in found] == ["x", "good"]  # x is the whole frame of cut.extxyz
    assert {item.where for item in skipped} == set(expected)
    for where, reason in skipped:
        assert expected[where] in reason, where
        assert "\n" not in reason


def test_nothing_in_a_file_is_executed(tmp_path, crystal):
    """pymatgen's own reader would import and call the classes that site properties name."""
    content = crystal.as_dict()
    trap = {"@module": "tests_trap", "@class": "Trap"}
    content["sites"][0]["properties"] = {"magmom": trap}
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "tests_trap.py").write_text("raise SystemExit('executed')")
    (item,), _ = read_structures(tmp_path / "a.json")
    assert_same(item.structure, crystal)


@pytest.mark.parametrize("given", ["nothing", "empty", "empty/a.cif"])
def test_no_crystal_at_all(tmp_path, given):
    (tmp_path / "empty").mkdir()
    if given.endswith(".cif"):
        (tmp_path / given).write_text("data_x\n")
    with pytest.raises(DataError, match="there is no file" if given == "nothing" else "no crystal"):
        read_structures(tmp_path / given)


def test_crystals_that_cannot_be_written(tmp_path, crystal):
    with pytest.raises(UserError, match="a POSCAR holds one crystal, not 2"):
        write_structures(tmp_path / "POSCAR", [crystal] * 2, ["a", "b"])
    with pytest.raises(UserError, match="cannot be written in the format of this name: use"):
        write_structures(tmp_path / "a.docx", [crystal], ["a"])
    flat = Structure(Lattice([[3, 0, 0], [6, 0, 0], [0, 0, 3]]), ["H"], [[0, 0, 0]])
    with pytest.raises(CrystalError, match="no volume"):
        write_structures(tmp_path / "a.cif", [flat], ["a"])
    assert list(tmp_path.iterdir()) == []


# Conversions


def test_conversions_of_a_crystal(crystal):
    arrays = to_crystal(crystal)
    assert_same(to_structure(arrays), crystal, atol=1e-12)
    atoms = to_atoms(arrays, "x")
    assert atoms.info == {"id": "x"}
    assert atoms.pbc.all()
    assert_same(to_structure(to_crystal(atoms)), crystal, atol=1e-12)
    (again, _) = split_batch(CrystalBatch.from_structures([crystal, crystal]))
    np.testing.assert_allclose(again.lattice, arrays.lattice, rtol=1e-6)
    np.testing.assert_allclose(again.frac_coords, arrays.frac_coords, atol=1e-6)
    assert again.atom_types.tolist() == arrays.atom_types.tolist() == [38, 8, 22, 8]


def test_coordinates_are_wrapped():
    outside = Structure(TRICLINIC, ["H", "H", "H"], [[-1e-18, 1, 2.25], [-0.25, 0, 0], [0.5] * 3])
    assert to_crystal(outside).frac_coords == pytest.approx(
        np.array([[0, 0, 0.25], [0.75, 0, 0], [0.5] * 3])
    )
    assert outside.frac_coords[0, 2] == 2.25


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (Atoms(cell=[3, 3, 3], pbc=True), "no atoms"),
        (Atoms("X", cell=[3, 3, 3], pbc=True), "an atom has no element"),
        (Atoms("H", cell=[3, 3, 0], pbc=True), "not periodic"),
        (Atoms("H", cell=[3, 3, 2e4], pbc=True), "a lattice entry"),
        (Atoms("H", [[np.nan] * 3], cell=[3, 3, 3], pbc=True), "not finite"),
        (
            Atoms("H", cell=[3, 3, 3], pbc=True, info={"occupancy": {"0": {"H": 0.5}}}),
            "partial occupancies",
        ),
        (Structure(Lattice(np.eye(3) * 3, pbc=(True, True, False)), ["H"], [[0] * 3]), "periodic"),
    ],
)
def test_invalid_crystals_are_rejected(given, reason):
    with pytest.raises(CrystalError, match=reason):
        to_crystal(given)


def test_crystals_with_non_finite_cells_stay_in_a_split_batch(crystal):
    batch = CrystalBatch.from_structures([crystal, crystal])
    broken = batch.replace(lattices=batch.lattices * np.nan)
    crystals = split_batch(broken)
    assert len(crystals) == 2
    assert isinstance(crystals[0], Crystal)
    assert np.isnan(crystals[1].lattice).all()


def test_gzip_files_are_read(tmp_path, crystal):
    write_structures(tmp_path / "a.cif", [crystal], ["a"])
    with gzip.open(tmp_path / "b.cif.gz", "wb") as file, (tmp_path / "a.cif").open("rb") as plain:
        shutil.copyfileobj(plain, file)
    assert ids(tmp_path) == ["a", "b"]


# Records and their properties


def records(path: Path, *names: str, **options) -> list[Record]:
    return list(StructureReader(path, names, **options))


def write_db(path: Path, frames: list[Atoms], **columns) -> None:
    with ase.db.connect(path) as database:
        for i, atoms in enumerate(frames):
            database.write(atoms, **{name: values[i] for name, values in columns.items()})


def properties_of(found: list[Record]) -> list[float | None]:
    return [None if np.isnan(r.properties[0]) else r.properties[0] for r in found]


def with_energy(atoms: Atoms, energy: float) -> Atoms:
    atoms.calc = SinglePointCalculator(atoms, energy=energy)
    return atoms


FRAMES = [bulk("Cu"), bulk("Fe"), bulk("Al")]


def test_an_ase_database(tmp_path):
    frames = [with_energy(bulk(name), -i) for i, name in enumerate(("Cu", "Fe", "Al", "Ni"), 1)]
    frames[1].set_constraint(FixAtoms([0]))
    write_db(tmp_path / "a.db", frames, gap=[0.5, 1.5, 2.5, 3.5], material_id=["a", "b", "c", "d"])
    with ase.db.connect(tmp_path / "a.db") as database:
        del database[3]
    content = (tmp_path / "a.db").read_bytes()
    found = records(tmp_path / "a.db", "gap", "energy")
    assert [r.id for r in found] == ["a", "b", "d"]
    assert [r.properties[:2] for r in found] == [(0.5, -1), (1.5, -2), (3.5, -4)]
    for record, atoms in zip(found, (frames[0], frames[1], frames[3]), strict=True):
        assert record.crystal is not None
        assert_same(to_structure(record.crystal), to_structure(to_crystal(atoms)), atol=1e-9)
    assert (tmp_path / "a.db").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["a.db"]


def test_a_database_is_read_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("src.data.structures.formats._ROWS_PER_QUERY", 2)
    write_db(tmp_path / "a.db", FRAMES + FRAMES, gap=range(6))
    found = records(tmp_path, "gap")
    assert properties_of(found) == [0, 1, 2, 3, 4, 5]
    assert [r.id for r in found] == [f"a-{i}" for i in range(6)]
    assert [r.where for r in found][:2] == ["a.db, frame 0", "a.db, frame 1"]


def test_a_database_is_closed_after_it_is_read(tmp_path, monkeypatch):
    write_db(tmp_path / "a.db", FRAMES, gap=range(3))
    connect, opened = sqlite3.connect, []

    def record(*args, **kwargs):
        opened.append(connect(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr("src.data.structures.formats.sqlite3.connect", record)
    assert len(records(tmp_path)) == 3
    assert opened
    for connection in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("SELECT 1")


def test_a_database_without_crystals_is_not_modified(tmp_path):
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("create table notes (text)")
    connection.close()
    content = (tmp_path / "a.db").read_bytes()
    (tmp_path / "b.db").write_bytes(b"no database")
    found = records(tmp_path)
    assert ["readonly" in found[0].reason, "not a database" in found[1].reason] == [True, True]
    assert (tmp_path / "a.db").read_bytes() == content


def test_properties_of_an_extxyz(tmp_path):
    frames = [with_energy(bulk("Cu"), -3.5), bulk("Fe"), bulk("Al")]
    frames[0].info |= {"gap": 1.5, "vector": np.ones(3)}
    frames[1].info["gap"] = "unknown"
    ase.io.write(tmp_path / "f.extxyz", frames)
    found = records(tmp_path, "energy", "gap")
    assert found[0].properties[:2] == (-3.5, 1.5)
    assert np.isnan(found[1].properties[:2]).all()
    assert np.isnan(found[2].properties[:2]).all()
    with pytest.raises(DataError, match=r"no crystal has \['volume'\]; .* are: energy, gap$"):
        records(tmp_path, "volume")


def test_properties_of_json(tmp_path, crystal):
    content = crystal.as_dict() | {"properties": {"gap": 1.5, "note": "x"}}
    entry = {"material_id": "mp-7", "gap": 2.5, "structure": crystal.as_dict()}
    (tmp_path / "a.json").write_text(json.dumps([content, crystal.as_dict(), entry]))
    found = records(tmp_path / "a.json", "gap")
    assert properties_of(found) == [1.5, None, 2.5]
    assert [r.id for r in found] == ["a-0", "a-1", "mp-7"]
    for record in found:
        assert record.crystal is not None
        assert_same(to_structure(record.crystal), crystal)


def write_tables(folder: Path, crystal: Structure) -> None:
    write_structures(folder / "a.cif", [crystal], ["a"])
    text = (folder / "a.cif").read_text()
    frame = pd.DataFrame({"cif": [text, "", text], "gap": [0.5, 1.0, None]})
    frame.to_parquet(folder / "p.parquet")
    frame.assign(id=["x", "y", "z"]).to_csv(folder / "t.csv.gz", index=False)


def test_tables_in_a_folder_with_other_files(tmp_path, crystal):
    write_tables(tmp_path, crystal)
    found, skipped = read_structures(tmp_path)
    assert [item.id for item in found] == ["a", "p-0", "p-2", "x", "z"]
    for item in found:
        assert_same(item.structure, crystal)
    assert skipped == [
        ("p.parquet row 1 (p-1)", "empty CIF"), ("t.csv.gz row 1 (y)", "empty CIF")
    ]  # fmt: skip
    assert written_name(found[-1].source) == Path("t.csv.gz.extxyz")
    assert properties_of(records(tmp_path, "gap")) == [None, 0.5, 1, None, 0.5, 1, None]
    assert {r.file for r in records(tmp_path)} == {"a.cif", "p.parquet", "t.csv.gz"}


def test_an_archive_with_several_formats(tmp_path, crystal):
    inside = tmp_path / "inside"
    write_tables(inside, crystal)
    write_db(inside / "d.db", FRAMES, gap=[7, 8, 9])
    write_structures(inside / "POSCAR", [crystal], ["x"])
    shutil.make_archive(str(tmp_path / "all"), "zip", inside)
    plain, packed = records(inside, "gap"), records(tmp_path / "all.zip", "gap")
    assert [(r.id, r.where, r.cif, r.file) for r in plain] == [
        (r.id, r.where, r.cif, r.file) for r in packed
    ]
    assert len(plain) == 11
    np.testing.assert_equal([r.properties for r in plain], [r.properties for r in packed])
    reader = StructureReader(tmp_path / "all.zip")
    assert reader.files == [tmp_path / "all.zip"]
    assert reader.sources == ["POSCAR", "a.cif", "d.db", "p.parquet", "t.csv.gz"]
    assert [reader.sources[int(r.properties[-1])] for r in packed] == [r.file for r in packed]


def test_a_pattern_selects_files(tmp_path, crystal):
    for name in ("a.cif", "b/c.cif", "b/POSCAR", ".d.cif", "e.cif.gz"):
        write_structures(tmp_path / "in" / name, [crystal], ["x"])
    shutil.make_archive(str(tmp_path / "in"), "zip", tmp_path / "in")
    for source in (tmp_path / "in", tmp_path / "in.zip"):
        assert [r.id for r in records(source, pattern="*.cif")] == ["a", "b/c"]
        assert [r.id for r in records(source, pattern="POSCAR*")] == ["b/POSCAR"]
    shutil.move(tmp_path / "in.zip", tmp_path / "in")
    assert len(records(tmp_path / "in", pattern="*.cif")) == 2  # without those in the archive
    assert len(records(tmp_path / "in", pattern="*.zip")) == 4


def test_a_truncated_table_is_an_error_if_it_is_the_only_file(tmp_path, crystal):
    write_tables(tmp_path, crystal)
    path = tmp_path / "t.csv.gz"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"t\.csv\.gz is not a readable CSV file"):
        records(path)
    (last,) = [r for r in records(tmp_path) if r.file == "t.csv.gz"]
    assert "is not a readable CSV file" in last.reason


@pytest.mark.filterwarnings("ignore:dict interface is deprecated")
def test_unreadable_files_become_records_with_reasons(tmp_path, crystal):
    expected = bad_files(tmp_path, crystal)
    found = records(tmp_path)
    assert all(pickle.loads(pickle.dumps(record)).where == record.where for record in found)
    options = ReadOptions()
    reasons = {}
    for record in found:
        try:
            read_record(record, options)
        except CrystalError as error:
            reasons[record.where] = str(error)
    assert reasons.keys() == expected.keys()
    assert all(expected[where] in reason for where, reason in reasons.items())


def test_every_format_gives_the_same_crystal_and_property_in_a_batch(tmp_path, crystal):
    """From file to `CrystalBatch.y`, with a missing value."""
    folder = tmp_path / "in"
    folder.mkdir()
    atoms = [crystal.to_ase_atoms(), crystal.to_ase_atoms()]
    atoms[0].info["gap"] = 0.5
    ase.io.write(folder / "a.extxyz", atoms)
    write_db(folder / "b.db", atoms[:1], gap=[0.5])
    write_db(folder / "b.db", atoms[1:])
    content = [crystal.as_dict() | {"properties": {"gap": 0.5}}, crystal.as_dict()]
    (folder / "c.json").write_text(json.dumps(content))
    write_structures(tmp_path / "d.cif", [crystal], ["d"])
    text = (tmp_path / "d.cif").read_text()
    frame = pd.DataFrame({"cif": [text] * 2, "gap": [0.5, None]})
    frame.to_csv(folder / "d.csv", index=False)
    frame.to_parquet(folder / "e.parquet")
    data = DataModule(
        folder, files="*", properties=["gap"], split_ratio=(1, 0, 0), cache_dir=tmp_path / "cache"
    )
    dataset = data.dataset("train")
    assert list(dataset.ids) == [f"{name}-{i}" for name in "abcde" for i in (0, 1)]
    batch = dataset.batch(torch.arange(10))
    assert batch.y["gap"].nan_to_num(-1).tolist() == [0.5, -1] * 5
    for structure in batch.to_structure():
        assert_same(structure, batch.to_structure()[0], atol=1e-5)
