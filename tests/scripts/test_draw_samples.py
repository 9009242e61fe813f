"""`scripts/draw_samples.py`."""

import pytest
from matplotlib.image import imread

from scripts.draw_samples import main
from tests.conftest import ROOT


def test_a_row_of_crystals(tmp_path):
    source, out = str(ROOT / "data" / "prototypes" / "test.csv"), tmp_path / "strip.png"
    main([source, str(out), "--num", "2"])
    assert imread(out).shape[:2] == (240, 420)
    with pytest.raises(SystemExit):
        main([source, str(tmp_path / "strip.txt")])
