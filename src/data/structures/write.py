"""Write crystals to files."""

import json
from collections.abc import Sequence
from pathlib import Path

import ase.io
from pymatgen.core import Structure

from src.data.cif import write_cif
from src.data.packing import open_packed
from src.data.structures.convert import to_atoms, to_crystal, to_structure
from src.data.structures.formats import format_of
from src.data.structures.poscar import write_poscar
from src.utils.errors import UserError

WRITABLE_FORMATS = ("cif", "poscar", "extxyz", "json")


def written_name(source: Path) -> Path:
    """The path for writing the crystals of an input file, in the format of that file if possible.

    If the format can only be read, `.extxyz` is appended.
    """
    if format_of(source.name) in WRITABLE_FORMATS:
        return source
    return source.with_name(f"{source.name}.extxyz")


def write_structures(path: Path, structures: Sequence[Structure], ids: Sequence[str]) -> None:
    """Write crystals to one file, in the format given by its name.

    Args:
        path: a name that ends in `.cif`, `.extxyz`, `.xyz`, `.json`, `.vasp` or `.poscar`, or that
            contains POSCAR or CONTCAR; `.gz`, `.bz2` or `.xz` may follow.
        structures: at least one structure; exactly one for a POSCAR.
        ids: their IDs, written as the name of the data block in CIF, as `id` in extended XYZ, and
            as the comment in a POSCAR. JSON does not store them.

    Raises:
        UserError: if the name is not that of a supported format, or if there are several structures
            for a POSCAR.
        CrystalError: if a structure cannot be written.
    """
    kind = format_of(path.name)
    if kind not in WRITABLE_FORMATS:
        raise UserError(
            f"{path}: crystals cannot be written in the format of this name: use .cif, .extxyz, "
            ".json or .vasp"
        )
    if kind == "poscar" and len(structures) > 1:
        raise UserError(
            f"{path}: a POSCAR holds one crystal, not {len(structures)}: use .cif, .extxyz or .json"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    crystals = [to_crystal(structure) for structure in structures]
    with open_packed(path) as file:
        if kind == "cif":
            file.writelines(write_cif(*pair) for pair in zip(crystals, ids, strict=True))
        elif kind == "extxyz":
            named = [to_atoms(*pair) for pair in zip(crystals, ids, strict=True)]
            ase.io.write(file, named, format="extxyz")
        elif kind == "poscar":
            file.write(write_poscar(crystals[0], ids[0]))
        else:
            content = [to_structure(crystal).as_dict() for crystal in crystals]
            json.dump(content if len(content) > 1 else content[0], file)
