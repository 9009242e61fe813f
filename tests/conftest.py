"""Fixtures that many tests share."""

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real crystals beside the project; see its README for what they are."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real crystals are not at {SHARED_DATA}")
    return SHARED_DATA
