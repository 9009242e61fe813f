"""Crystals to files, in the formats that they are read from."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import ase.io
from pymatgen.core import Structure
from pymatgen.io.vasp import Poscar

from src.data.cif import write_cif
from src.data.structures.convert import to_atoms, to_crystal, to_structure
from src.data.structures.formats import format_of

WRITTEN = ("cif", "poscar", "extxyz", "json")


def written_name(source: Path) -> Path:
    """The name under which the crystals of a file are written: its own, or with `.extxyz` added
    where its format is one that is only read."""
    if format_of(source.name) in WRITTEN:
        return source
    return source.with_name(f"{source.name}.extxyz")


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
    kind = format_of(path.name)
    if kind not in WRITTEN:
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
