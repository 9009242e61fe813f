#!/usr/bin/env bash
# pymatgen's CIF reader and an atom whose coordinates are given as `.`, CIF's sign for "there is none":
# a hydrogen that was not located, for example.
#
# One would guess: the atom is left out with a warning, or the file is refused, as it is for `?`.
# What happens: `.` is read as 0, so the atom is placed at the origin without a word about it. With `?`
# instead, the same file is refused.
# Seen with pymatgen 2026.10.24 (pymatgen-core 2026.10.16). Source: this run, and `str2float` in
# pymatgen/io/cif.py, which is used for cell parameters and coordinates alike.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet pymatgen==2026.10.24 pymatgen-core==2026.10.16
cd "$folder"
env/bin/python - <<'PYTHON'
import warnings
from importlib.metadata import version

from pymatgen.core import Structure

print("pymatgen", version("pymatgen"), "pymatgen-core", version("pymatgen-core"))
CIF = """data_hydroxide
_cell_length_a 5.0
_cell_length_b 6.0
_cell_length_c 7.0
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_chemical_formula_sum 'H Li O'
_cell_formula_units_Z 1
_space_group_name_H-M_alt 'P 1'
loop_
_space_group_symop_operation_xyz
'x,y,z'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Li1 Li 0.1 0.2 0.3
O1 O 0.5 0.5 0.5
H1 H {0} {0} {0}
"""
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    structure = Structure.from_str(CIF.format("."), fmt="cif")
(hydrogen,) = [site for site in structure if site.specie.symbol == "H"]
told = [str(each.message) for each in caught if "coord" in str(each.message).lower()]
print("with '.':", structure.formula, "hydrogen at", hydrogen.frac_coords.tolist())
print("warnings of it:", told)
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unknown = Structure.from_str(CIF.format("?"), fmt="cif").formula
except ValueError as error:
    unknown = f"ValueError: {error}"
print("with '?':", unknown)
assert hydrogen.frac_coords.tolist() == [0, 0, 0] and not told
assert unknown.startswith("ValueError")
PYTHON
