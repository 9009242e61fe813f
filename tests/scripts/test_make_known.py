"""The file of known crystals is small, the same every time, and read like any data set."""

import numpy as np
import pandas as pd
import pytest

from scripts.make_known import main
from src.data.cif import read_cif
from src.metrics import match
from tests.conftest import ROOT


def test_a_file_of_known_crystals(tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = pd.read_csv(ROOT / "data" / "prototypes" / "test.csv", nrows=20)
    rows.to_csv(folder / "train.csv", index=False)
    out = tmp_path / "known.csv.gz"
    main([str(folder), str(out)])
    assert "20 crystals" in capsys.readouterr().out
    found = pd.read_csv(out)
    assert found["material_id"].tolist() == rows["material_id"].tolist()
    originals, read = (
        [read_cif(cif, niggli=False) for cif in table["cif"]] for table in (rows, found)
    )
    assert all(result.matched for result in match(read, originals))
    for one, other in zip(originals, read, strict=True):
        offset = one.frac_coords - other.frac_coords
        assert np.abs(offset - np.rint(offset)).max() <= 0.51e-4
    before = out.read_bytes()
    main([str(folder), str(out), "--overwrite"])
    assert out.read_bytes() == before
    with pytest.raises(SystemExit):
        main([str(folder), str(tmp_path / "known.txt")])
