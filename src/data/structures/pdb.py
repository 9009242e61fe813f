"""Read PDB files of crystals as CIF text, with the symmetry that CRYST1 names."""

from collections.abc import Iterator

import gemmi

from src.data.crystal import CrystalError

_FULL = 0.999


def cifs_of_pdb(text: str) -> Iterator[str | CrystalError]:
    """Yield the CIF text of each model in a PDB file, or the reason why it cannot be read."""
    try:
        structure = gemmi.read_pdb_string(text)
    except (RuntimeError, ValueError, UnicodeDecodeError) as error:
        yield CrystalError(f"not a readable PDB file: {' '.join(str(error).split())}")
        return
    if not structure.cell.is_crystal():
        yield CrystalError("not periodic in three dimensions: no CRYST1 record with a cell")
        return
    if structure.cell.explicit_matrices:
        yield CrystalError("the SCALE records are not those of the cell in CRYST1")
        return
    if any(not ncs.given for ncs in structure.ncs):
        yield CrystalError("MTRIX records with atoms that are not given are not supported")
        return
    if not len(structure):
        yield CrystalError("no atoms")
    for model in structure:
        try:
            yield _cif_of(structure, model)
        except CrystalError as error:
            yield error


def _cif_of(structure: gemmi.Structure, model: gemmi.Model) -> str:
    cell = structure.cell
    group = structure.spacegroup_hm.strip()
    if not group:
        raise CrystalError("CRYST1 names no space group: write P 1 if all atoms are listed")
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    values = (cell.a, cell.b, cell.c, cell.alpha, cell.beta, cell.gamma)
    lines = ["data_pdb"]
    lines += [f"_cell_{name} {value!r}" for name, value in zip(names, values, strict=True)]
    lines += [f"_space_group_name_H-M_alt '{group}'", "loop_", "_atom_site_type_symbol"]
    lines += [f"_atom_site_fract_{axis}" for axis in "xyz"]
    for chain in model:
        for residue in chain:
            for atom in residue:
                if atom.altloc != "\0":
                    raise CrystalError(
                        f"atom {atom.name} is alternative {atom.altloc}: not an ordered crystal"
                    )
                if abs(atom.occ - 1) > 1 - _FULL:
                    raise CrystalError(
                        f"atom {atom.name} has occupancy {atom.occ:g}: not an ordered crystal"
                    )
                if atom.element.atomic_number == 0:
                    raise CrystalError(f"atom {atom.name!r} has no element")
                at = cell.fractionalize(atom.pos)
                lines.append(f"{atom.element.name} {at.x!r} {at.y!r} {at.z!r}")
    return "\n".join(lines) + "\n"
