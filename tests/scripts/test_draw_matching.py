"""The verdicts that the page about matching tells are those of both matchers."""

import pytest

from scripts import draw_matching
from scripts.draw_matching import PICTURES, Case
from src.metrics import match
from src.metrics.matching import rms_distance
from tests.conftest import ROOT

CASES = [case for cases in PICTURES.values() for case in cases]


@pytest.mark.parametrize("case", CASES, ids=[case.label.split("\n")[0] for case in CASES])
def test_verdicts(case: Case):
    for verdict in case.verdicts:
        pair = case.crystals[verdict.first], case.crystals[verdict.second]
        (result,) = match([pair[0]], [pair[1]], verdict.settings)
        for rms in (result.rms, rms_distance(*pair, verdict.settings)):
            if verdict.rms is None:
                assert rms is None
            else:
                assert rms == pytest.approx(verdict.rms, abs=6e-5)


def test_pictures(tmp_path):
    draw_matching.main([str(tmp_path)])
    page = (ROOT / "docs" / "matching.md").read_text()
    for name in PICTURES:
        assert (tmp_path / name).stat().st_size > 10_000
        assert f"images/{name}" in page
        assert (ROOT / "docs" / "images" / name).is_file()
