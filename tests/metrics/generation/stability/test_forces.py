"""Quantiles of forces; what the potential says is tested in tests/scripts/test_forces.py."""

import math

import pytest

from src.metrics.generation import stability
from src.metrics.generation.stability import forces
from src.utils.errors import UserError


def test_quantiles():
    found = stability.quantiles([4.0, 1.0, math.inf, 2.0])
    assert (found["0.1"], found["0.5"], found["0.9"]) == (1.0, 4.0, math.inf)
    assert math.isnan(stability.quantiles([])["0.5"])


def test_without_the_extra(monkeypatch):
    monkeypatch.setattr(forces, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="extra stability"):
        stability.largest_forces([])
