#!/usr/bin/env bash
# ase.io.read of a SHELX file (.res, which AIRSS writes too) or a PDB file of a crystal with symmetry.
#
# One would guess: the symmetry that the file gives (SYMM lines, the space group in CRYST1) is applied,
# as ASE does for a CIF, or the file is refused.
# What happens: the atoms of the asymmetric unit come back in the full cell with pbc=True, without a
# warning: a half or a quarter of the atoms of the crystal, in a cell for all of them.
# Seen with ase 3.29.0, and with gemmi 0.7.5 for what the PDB file says. Source: this run.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet numpy==2.4.6 ase==3.29.0 gemmi==0.7.5
cd "$folder"
cat > crystal.res <<'RES'
TITL NaCl-1 0.0 210.0 -10.0 0 0 4 (P21) n - 1
CELL 1.54180 5.0 6.0 7.0 90.0 95.0 90.0
LATT -1
SYMM -X, 0.5+Y, -Z
SFAC Na Cl
Na 1 0.1 0.2 0.3 1.0
Cl 2 0.6 0.4 0.7 1.0
END
RES
cat > crystal.pdb <<'PDB'
CRYST1    5.000    6.000    7.000  90.00  90.00  90.00 P 21 21 21    4
HETATM    1 NA    NA A   1       0.500   1.200   2.100  1.00  0.00          NA
HETATM    2 CL    CL A   2       3.000   2.400   4.900  1.00  0.00          CL
END
PDB
env/bin/python - <<'PYTHON'
import warnings

import ase
import ase.io
import gemmi

print("ase", ase.__version__, "gemmi", gemmi.__version__)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    res, pdb = ase.io.read("crystal.res"), ase.io.read("crystal.pdb")
told = [str(each.message) for each in caught if "symm" in str(each.message).lower()]

# all positions are general, so the cell has one atom of each element for each operation
operations = 2  # of P 21 in the .res file: x,y,z and its SYMM line
print(f".res: ASE reads {len(res)} of {2 * operations} atoms in the cell, pbc={res.pbc.all()}")
structure = gemmi.read_pdb("crystal.pdb")
operations = len(gemmi.SpaceGroup(structure.spacegroup_hm).operations())
print(f".pdb: ASE reads {len(pdb)} of {2 * operations} atoms in the cell, pbc={pdb.pbc.all()}")
print("warnings of symmetry:", told)
assert len(res) == 2 and res.pbc.all() and abs(res.cell.volume - 209.2) < 0.1
assert len(pdb) == 2 and pdb.pbc.all() and operations == 4 and "spacegroup" not in pdb.info
assert not told
PYTHON
