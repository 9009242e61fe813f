"""Metrics become JSON that any program can read, and no other code writes JSON."""

import ast
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from src.utils.strict_json import json_ready, json_text, not_finite, write_json

ROOT = Path(__file__).resolve().parents[2]


def parse(text: str):
    """Parse JSON strictly, as the standard requires."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_what_is_not_finite_is_null_at_any_depth(tmp_path):
    content = {
        "nan": math.nan,
        "inf": [math.inf, {"minus": -math.inf}],
        "numpy": (np.float32(1.5), np.float64(np.nan), np.int64(3), np.bool_(True)),
        "array": np.array([[1.0, np.inf]]),
        "plain": [1, 2.5, True, None, "é"],
    }
    write_json(tmp_path / "figures.json", content)
    assert parse((tmp_path / "figures.json").read_text(encoding="utf-8")) == {
        "nan": None,
        "inf": [None, {"minus": None}],
        "numpy": [1.5, None, 3, True],
        "array": [[1.0, None]],
        "plain": [1, 2.5, True, None, "é"],
    }


def test_the_content_stays_as_it_was():
    content = {"values": [math.inf]}
    assert json_ready(content) == {"values": [None]}
    assert content == {"values": [math.inf]}


def test_what_is_not_finite_is_named():
    content = {"a": math.nan, "b": {"c": [1, -math.inf, "nan"]}, "d": [{"e": math.inf}], "f": None}
    assert not_finite(content) == ["a", "b.c.1", "d.0.e"]
    assert not_finite({"a": [1, 2.5, True]}) == []


def test_the_text(tmp_path):
    assert json_text({"a": [1]}, indent=None) == '{"a": [1]}'
    assert json_text({"a": 1}) == '{\n  "a": 1\n}'
    write_json(tmp_path / "a.json", {"a": 1})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": 1\n}\n'


def test_what_is_no_figure_is_an_error():
    with pytest.raises(TypeError, match="Tensor"):
        json_text({"loss": torch.zeros(())})


# Names, sizes and settings, and no figures
NO_FIGURES = {
    "dataset.py", "fingerprint.py", "flat.py", "write.py", "search.py", "draw_imports.py",
}  # fmt: skip


@pytest.mark.parametrize("folder", ["src", "scripts"])
def test_all_figures_are_written_here(folder):
    """Python's own `json` writes NaN and Infinity by default."""
    loose = [
        path.name
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dump", "json.dumps")
        if not any(keyword.arg == "allow_nan" for keyword in node.keywords)
    ]
    assert set(loose) <= NO_FIGURES
