"""Crystals in the files that people keep them in, one by one; and back into the same formats.

CIF is read by `src.data.cif`, POSCAR and JSON in pymatgen's form as pymatgen does, extended XYZ and
all other formats by ASE. Nothing in a file is ever executed.
"""

import gzip
import io
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import gemmi
import numpy as np
from ase import Atoms
from ase.io.formats import UnknownFileTypeError
from pymatgen.core import DummySpecies, Lattice, Structure
from pymatgen.io.vasp import Poscar

from src.data.cif import MAX_LATTICE_ENTRY, MIN_VOLUME, Crystal, CrystalError, read_cif, write_cif
from src.data.readers import DataError
from src.data.schema import CrystalBatch

_FORMATS = {
    ".cif": "cif",
    ".vasp": "poscar",
    ".poscar": "poscar",
    ".xyz": "extxyz",
    ".extxyz": "extxyz",
    ".json": "json",
}


@dataclass(frozen=True, slots=True)
class NamedStructure:
    """A crystal and where it was found.

    Attributes:
        id: the path of its file as in `source`, without suffix, and `-INDEX` where the file holds
            several; or what an extended XYZ gives it as `id` or `material_id`.
        structure: elements in a cell, as in the file; oxidation states and the like are left out.
        source: its file, relative to the folder or zip archive that was read.
    """

    id: str
    structure: Structure
    source: Path


class Skipped(NamedTuple):
    """What could not be read: a file, or a frame of one, and why."""

    where: str
    reason: str


# Reading


def read_structures(path: str | Path) -> tuple[list[NamedStructure], list[Skipped]]:
    """All crystals of a file, or of the files in a folder, and what was skipped.

    Raises:
        DataError: if there is no such path, or no crystal in it.
    """
    found: list[NamedStructure] = []
    skipped: list[Skipped] = []
    for item in iter_structures(path):
        if isinstance(item, Skipped):
            skipped.append(item)
        else:
            found.append(item)
    if not found:
        first = "".join(f"\n  {where}: {reason}" for where, reason in skipped[:5])
        raise DataError(
            f"{path} holds no crystal that can be read{first}\nCIF, POSCAR, extended XYZ, "
            "pymatgen's JSON, what else ASE reads, and zip archives of them are understood."
        )
    return found, skipped


def iter_structures(path: str | Path) -> Iterator[NamedStructure | Skipped]:
    """The crystals of a file, of a folder (at any depth) or of a zip archive, in sorted order.

    Files are opened one after the other, and frames of an extended XYZ are read one after the
    other. Hidden files are passed over. A file, frame or CIF data block that cannot be used is
    yielded as `Skipped`: damaged ones, unknown formats, partial occupancies, atoms that are not
    periodic in three dimensions or of no element, POSCARs without elements.

    Raises:
        DataError: if there is no such path.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"there is no file or folder {path}")
    for item in _files(path):
        if isinstance(item, Skipped):
            yield item
        else:
            yield from _read_file(*item)


File = Path | zipfile.Path


def _files(path: Path) -> Iterator[tuple[File, Path] | Skipped]:
    """Each file at or below `path`, archives unpacked, and its path relative to `path`."""
    if not path.is_dir():
        yield from _members(path, Path()) if path.suffix == ".zip" else [(path, Path(path.name))]
        return
    for file in sorted(path.rglob("*")):
        source = file.relative_to(path)
        if file.is_file() and not _is_hidden(source):
            yield from _members(file, source) if file.suffix == ".zip" else [(file, source)]


def _members(archive: Path, source: Path) -> Iterator[tuple[File, Path] | Skipped]:
    try:
        with zipfile.ZipFile(archive) as opened:
            for name in sorted(opened.namelist()):
                member = Path(name.lstrip("/"))  # below `source`, whatever the archive says
                if not (name.endswith("/") or _is_hidden(member)):
                    yield zipfile.Path(opened, name), source / member
    except (zipfile.BadZipFile, OSError) as error:
        yield Skipped(archive.name, _reason(error))


def _is_hidden(source: Path) -> bool:
    return any(part.startswith(".") for part in source.parts)  # `..` too


def _read_file(file: File, source: Path) -> Iterator[NamedStructure | Skipped]:
    frames = _frames(file)
    first = list(islice(frames, 2))  # two are enough to know whether there are several
    for index, frame in enumerate(chain(first, frames)):
        several = len(first) > 1
        if isinstance(frame, str):
            yield Skipped(f"{source}, frame {index}" if several else str(source), frame)
            continue
        id_, structure = frame
        if id_ is None:
            id_ = source.with_name(_stem(source.name)).as_posix()
            id_ = f"{id_}-{index}" if several else id_
        yield NamedStructure(id_, structure, source)


def _frames(file: File) -> Iterator[tuple[str | None, Structure] | str]:
    """(its own id if it has one, structure) of each frame, or why there is none."""
    try:
        for id_, read in _parse(file):
            yield _attempt(id_, read)
    except Exception as error:  # parsers of other people's files raise anything
        yield _reason(error)


def _attempt(id_: str | None, read: Callable[[], Crystal]) -> tuple[str | None, Structure] | str:
    try:
        return id_, to_structure(read())
    except Exception as error:
        return _reason(error)


def _parse(file: File) -> Iterator[tuple[str | None, Callable[[], Crystal]]]:
    """(its own id if it has one, what reads it) of each frame."""
    kind = _format(file.name)
    if kind is None:
        if not isinstance(file, Path):
            raise ValueError("a format that is not read from archives")
        for atoms in ase.io.iread(file, ":"):
            yield None, partial(to_crystal, atoms)
        return
    with file.open("rb") as raw:
        unpacked: Any = gzip.GzipFile(fileobj=raw) if file.name.endswith(".gz") else raw
        with io.TextIOWrapper(unpacked, encoding="utf-8-sig", errors="replace") as stream:
            if kind == "extxyz":
                for atoms in ase.io.iread(stream, ":", format="extxyz"):
                    id_ = atoms.info.get("id", atoms.info.get("material_id"))
                    yield None if id_ is None else str(id_), partial(to_crystal, atoms)
                return
            text = stream.read()
    if kind == "cif":
        for block in _cif_blocks(text):
            yield None, partial(read_cif, block, niggli=False)
    elif kind == "poscar":
        yield None, partial(_read_poscar, text)
    else:
        content = json.loads(text)
        for item in content if isinstance(content, list) else [content]:
            yield None, partial(_read_dict, item)


def _cif_blocks(text: str) -> list[str]:
    """The data blocks with atoms, as texts; all of the text where there is only one."""
    if len(re.findall(r"^data_", text, flags=re.MULTILINE | re.IGNORECASE)) < 2:
        return [text]
    blocks = [b for b in gemmi.cif.read_string(text) if b.find_values("_atom_site_fract_x")]
    return [block.as_string() for block in blocks] if len(blocks) > 1 else [text]


def _read_poscar(text: str) -> Crystal:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        poscar = Poscar.from_str(text, read_velocities=False)
    if not poscar.true_names:
        raise CrystalError("the POSCAR does not say which elements: give their symbols in line 6")
    return to_crystal(poscar.structure)


def _read_dict(content: Any) -> Crystal:
    if not isinstance(content, dict) or not {"lattice", "sites"} <= content.keys():
        raise CrystalError("the JSON is no pymatgen Structure or list of them")
    # pymatgen would import whatever a site's properties name
    sites = [{"species": s["species"], "abc": s["abc"]} for s in content["sites"]]
    lattice = {
        key: content["lattice"][key] for key in ("matrix", "pbc") if key in content["lattice"]
    }
    return to_crystal(Structure.from_dict({"lattice": lattice, "sites": sites}))


def _format(name: str) -> str | None:
    """Of `_FORMATS`, or None for what is left to ASE."""
    name = name.removesuffix(".gz")
    by_suffix = _FORMATS.get(Path(name).suffix.lower())
    return by_suffix or ("poscar" if re.search("POSCAR|CONTCAR", name) else None)


def _stem(name: str) -> str:
    name = name.removesuffix(".gz")
    known = Path(name).suffix.lower() in _FORMATS or _format(name) is None
    return Path(name).stem if known else name  # POSCAR.mp-149 has no suffix


def _reason(error: Exception) -> str:
    if isinstance(error, UnknownFileTypeError):
        return "of no format that pymatgen or ASE knows"
    said = " ".join(str(error).split())
    return said if isinstance(error, CrystalError) else f"{type(error).__name__}: {said}"


# Writing


def written_name(source: Path) -> Path:
    """The name under which the crystals of a file are written: its own, or with `.extxyz` behind
    where its format is one that is only read."""
    return source if _format(source.name) else source.with_name(f"{source.name}.extxyz")


def write_structures(path: Path, structures: Sequence[Structure], ids: Sequence[str]) -> None:
    """Write crystals to one file, in the format that its name says.

    Args:
        path: `.cif`, `.extxyz` or `.xyz`, `.json`, or a POSCAR (`.vasp`, `.poscar`, or any name
            with POSCAR or CONTCAR in it); `.gz` may follow.
        structures: at least one, and no more than that for a POSCAR.
        ids: their names, as `data_` in a CIF, `id` in an extended XYZ, and comment in a POSCAR;
            JSON has no place for them.

    Raises:
        ValueError: for a name of no such format, or several structures in a POSCAR.
        CrystalError: for a crystal that the format cannot hold.
    """
    kind = _format(path.name)
    if kind is None:
        raise ValueError(f"{path}: no format that crystals are written in has such a name")
    if kind == "poscar" and len(structures) > 1:
        raise ValueError(f"{path}: a POSCAR holds one crystal, not {len(structures)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if path.name.endswith(".gz") else open
    crystals = [to_crystal(structure) for structure in structures]
    with opened(path, "wt", encoding="utf-8") as file:
        if kind == "cif":
            file.writelines(write_cif(*pair) for pair in zip(crystals, ids, strict=True))
        elif kind == "extxyz":
            named = [to_atoms(*pair) for pair in zip(crystals, ids, strict=True)]
            ase.io.write(file, named, format="extxyz")
        elif kind == "poscar":
            poscar = Poscar(to_structure(crystals[0]), comment=ids[0])
            file.write(poscar.get_str(significant_figures=16))
        else:
            content = [to_structure(crystal).as_dict() for crystal in crystals]
            json.dump(content if len(content) > 1 else content[0], file)


# From one form to another


def to_crystal(given: Structure | Atoms) -> Crystal:
    """The elements, cell and coordinates (wrapped into the cell) of a structure.

    Raises:
        CrystalError: for partial occupancies, a site of no element, no atoms, what is not periodic
            in three dimensions, or what `check_numbers` refuses.
    """
    if isinstance(given, Atoms):
        if not given.pbc.all() or not given.cell.volume >= MIN_VOLUME:
            raise CrystalError("not periodic in three dimensions")
        sites = given.info.get("occupancy", {}).values()  # as ASE keeps what a CIF says
        if any(set(site.values()) != {1.0} for site in sites):
            raise CrystalError("partial occupancies: not an ordered crystal")
        atom_types, lattice = given.numbers.astype(np.int64), given.cell.array
        frac_coords = given.cell.scaled_positions(given.positions)
    else:
        if not all(given.lattice.pbc):
            raise CrystalError("not periodic in three dimensions")
        if not given.is_ordered:
            raise CrystalError("partial occupancies: not an ordered crystal")
        # the Z of a dummy species is a hash
        species = [0 if isinstance(s, DummySpecies) else s.Z for s in given.species]
        atom_types, lattice = np.array(species, dtype=np.int64), given.lattice.matrix
        frac_coords = given.frac_coords
    if not len(atom_types):
        raise CrystalError("no atoms")
    if atom_types.min() < 1:
        raise CrystalError("an atom of no element")
    crystal = Crystal(lattice, atom_types, frac_coords % 1.0 % 1.0)  # -1e-17 % 1.0 is 1.0
    check_numbers(crystal)
    return crystal


def to_structure(crystal: Crystal) -> Structure:
    """As a pymatgen `Structure`."""
    return Structure(Lattice(crystal.lattice), crystal.atom_types.tolist(), crystal.frac_coords)


def to_atoms(crystal: Crystal, id: str | None = None) -> Atoms:
    """As ASE `Atoms`, with `info["id"]` if one is given."""
    return Atoms(
        numbers=crystal.atom_types,
        scaled_positions=crystal.frac_coords,
        cell=crystal.lattice,
        pbc=True,
        info={} if id is None else {"id": id},
    )


def split_batch(batch: CrystalBatch) -> list[Crystal]:
    """The crystals of a batch, whatever their numbers are."""
    batch = batch.to("cpu")
    cuts = batch.ptr[1:-1].tolist()
    return [
        Crystal(*arrays)
        for arrays in zip(
            batch.lattices.double().numpy(),
            np.split(batch.atom_types.numpy(), cuts),
            np.split(batch.frac_coords.double().numpy(), cuts),
            strict=True,
        )
    ]


def check_numbers(crystal: Crystal) -> None:
    """Refuse a crystal that no file can hold.

    Raises:
        CrystalError: for numbers that are not finite, or a cell that is huge or without volume.
    """
    if not np.isfinite(crystal.frac_coords).all():
        raise CrystalError("a coordinate is not finite")
    if not np.abs(crystal.lattice).max() < MAX_LATTICE_ENTRY:
        raise CrystalError(f"a lattice entry is not a number below {MAX_LATTICE_ENTRY:g} Å")
    if not (volume := abs(np.linalg.det(crystal.lattice))) >= MIN_VOLUME:
        raise CrystalError(f"the cell has no volume ({volume:.1e} Å^3)")
