import dataclasses
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

pytest.importorskip("matminer")

from src.metrics.generation.evaluate import Part
from src.metrics.generation.fingerprints import Fingerprint
from src.metrics.generation.parts import checksum, read_parts, write_part
from src.utils.errors import UserError

SETTINGS = {"input": "abc", "tolerances": {"stol": 0.3}, "test_reference": None}


def make_part(first: int, has_amd: bool = True) -> Part:
    """Of crystals `first` and `first + 1`, the second of which has no fingerprint."""
    values = np.random.default_rng(first).random((3, 5))
    fingerprint = Fingerprint(values[0], values[1], values[2] if has_amd else None)
    return Part(
        {first: fingerprint, first + 1: "timeout"}, {first: fingerprint},
        {first: 7}, {first: True}, {first: 2},
    )  # fmt: skip


@pytest.fixture
def folders(tmp_path) -> list[Path]:
    found = [tmp_path / name for name in ("one", "two", "of_three", "other", "none")]
    written = [
        (1, 2, SETTINGS),
        (2, 2, SETTINGS),
        (1, 3, SETTINGS),
        (2, 2, {**SETTINGS, "input": 1}),
    ]
    for folder, (number, count, settings) in zip(found, written, strict=False):
        folder.mkdir()
        write_part(folder, make_part(2 * number), number, count, settings)
    return found


def flat(part: Part) -> list:
    """With arrays as lists, which can be compared."""
    return [
        {i: dataclasses.astuple(x) if isinstance(x, Fingerprint) else x for i, x in each.items()}
        for each in (getattr(part, name) for name in Part.__slots__)
    ]


def test_parts_are_read_as_they_were_written(folders):
    one, two = make_part(2), make_part(4)
    part = read_parts(folders[1::-1], SETTINGS)
    expected = [{**first, **second} for first, second in zip(flat(one), flat(two), strict=True)]
    np.testing.assert_equal(flat(part), expected)


@pytest.mark.parametrize("part", [make_part(0, has_amd=False), Part({0: "a"}, {}, {}, {}, {})])
def test_parts_without_amd_and_without_fingerprints(part, tmp_path):
    write_part(tmp_path, part, 1, 1, SETTINGS)
    np.testing.assert_equal(flat(read_parts([tmp_path], SETTINGS)), flat(part))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([0], r"merge lacks the parts \[2\] of 2"),
        ([], r"merge lacks the parts \[1\] of 1"),
        ([0, 1, 0], "are the same part: give each once"),
        ([0, 2], r"merge has parts of \[2, 3\]: all must be of the same number"),
        ([0, 3], "other was computed with another input: merge with the same input"),
        ([0, 4], "none is not the folder of a part"),
    ],
)
def test_parts_that_do_not_belong_together(chosen, message, folders):
    with pytest.raises(UserError, match=message):
        read_parts([folders[i] for i in chosen], SETTINGS)


@pytest.mark.parametrize(
    ("name", "content"),
    [("part.json", "{"), ("part.json", "{}"), ("part.json", "[]"), ("part.safetensors", "no")],
)
def test_damaged_parts(name, content, folders):
    (folders[0] / name).write_text(content)
    with pytest.raises(UserError, match=r"the part in .*one is damaged .*: do it again"):
        read_parts(folders[:2], SETTINGS)


def test_the_checksum_is_of_all_that_counts():
    salt = Structure(Lattice.cubic(4.0), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    moved, other = salt.copy(), salt.copy()
    moved.translate_sites(1, [0, 0, 0.1])
    other.replace_species({"Na": "K"})
    larger = salt.copy().scale_lattice(70.0)
    found = {checksum([each]) for each in (salt, moved, other, larger)}
    assert len(found | {checksum([salt, other]), checksum([other, salt])}) == 6
    assert checksum([salt.copy()]) in found
