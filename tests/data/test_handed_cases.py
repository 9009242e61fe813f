"""Files of users that were once read wrongly, kept beside the project."""

from collections import Counter

import gemmi
import numpy as np
import pytest

from src.data.crystal import CrystalError
from src.data.readers import crystal_of
from src.data.structures import StructureReader

# the content of the first crystal and how many there are, or None if the file must be refused
EXPECTED = {
    "ob2586_xyz_only.cif": ("O4 Mg4", 1),
    "p1179_badops.cif": None,
    "recipro1_badcentring.cif": ("Na4 Cl4", 1),
    "generators_only.cif": ("O6 Cd1 I2", 1),
    "hm_ref.cif": ("Na4 Cl4", 1),
    "hm_dotted.cif": ("Na4 Cl4", 1),
    "symop_dotted.cif": ("Na4 Cl4", 1),
    "mag_old.cif": None,
    "modulated.cif": None,
    "FeSe_code2.cif": ("Fe2 Se2", 1),
    "type_21.cif": None,
    "mix_type_02.cif": None,
    "label_T1.cif": None,
    "FE.cif": ("Cl1 Fe1", 1),
    "FE.cif.bz2": ("Cl1 Fe1", 1),
    "blank_after5_of20.extxyz": ("Na1 Cl1", 20),
    "D60_of100.extxyz": ("Na1 Cl1", 100),
    "bool10_missing.csv": ("Na1 Cl1", 10),
    "POSCAR_negscale_cart": ("O3 Ti1 Sr1", 1),
    "POSCAR_3scale": ("O3 Ti1 Sr1", 1),
}


def test_the_handed_cases(shared_cases):
    for name, expected in EXPECTED.items():
        names = ["is_metal"] if name == "bool10_missing.csv" else []
        records = list(StructureReader(shared_cases / name, names))
        if expected is None:
            assert len(records) == 1, name
            with pytest.raises(CrystalError):
                crystal_of(records[0])
            continue
        crystals = [crystal_of(record) for record in records]
        counts = sorted(Counter(crystals[0].atom_types.tolist()).items())
        content = " ".join(f"{gemmi.Element(z).name}{n}" for z, n in counts)
        assert (content, len(crystals)) == expected, name
        if names:
            values = [record.properties[0] for record in records]
            assert sum(map(np.isnan, values)) == 1
            assert set(values) >= {0.0, 1.0}
        if name.startswith("POSCAR"):
            np.testing.assert_allclose(crystals[0].frac_coords[1], [0.5] * 3)
