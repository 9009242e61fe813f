"""Parsing records, in workers or not. The records here are not CIFs but instructions to `read`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from src.data import parsing
from src.data.cif import Crystal, CrystalError
from src.data.parsing import ParsedChunk, parse
from src.data.readers import DataError, Record
from src.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def read(record: Record) -> Crystal:
    """A crystal of `number` atoms with atomic number `number`, unless the text says otherwise."""
    number = int(record.id)
    if record.cif == "bad":
        raise CrystalError(f"{number} is bad")
    if record.cif == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if record.cif == "slow":  # later records finish first
        time.sleep(0.3)
    return Crystal(number * np.eye(3), np.full(number, number), np.full((number, 3), 1 / number))


def make_records(num: int, **texts: list[int]) -> list[Record]:
    text = {i: name for name, numbers in texts.items() for i in numbers}
    return [Record(f"row {i}", str(i), text.get(i, ""), (i / 4, i)) for i in range(1, num + 1)]


def join(parts: list[ParsedChunk]) -> dict:
    arrays = ("atom_types", "frac_coords", "lattices", "num_atoms", "properties")
    return {
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays},
        "ids": [id_ for part in parts for id_ in part.ids],
        "rejected": [each for part in parts for each in part.rejected],
    }


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(parsing, "CHUNK", 3)
    monkeypatch.setattr(parsing, "LARGE", 30)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_the_result_does_not_depend_on_the_number_of_workers(num_workers):
    records = make_records(50, bad=[2, 7, 8, 9, 50], slow=[1, 20])
    found = join(list(parse(records, read, num_workers, 2)))
    good = [i for i in range(1, 51) if i not in (2, 7, 8, 9, 50)]
    assert found["ids"] == [str(i) for i in good]
    assert [(record, reason) for record, reason in found["rejected"]] == [
        (records[i - 1], f"{i} is bad") for i in (2, 7, 8, 9, 50)
    ]
    assert (found["num_atoms"] == good).all()
    assert (found["atom_types"] == np.repeat(good, good)).all()
    np.testing.assert_array_equal(found["frac_coords"][:, 2], np.float32(1) / found["atom_types"])
    assert (found["lattices"] == np.array(good)[:, None, None] * np.eye(3)).all()
    assert found["properties"].tolist() == [[i / 4, i] for i in good]
    kinds = {name: (value.dtype, value.shape[1:]) for name, value in found.items()
             if isinstance(value, np.ndarray)}  # fmt: skip
    assert kinds == {
        "atom_types": (np.uint8, ()), "frac_coords": (np.float32, (3,)),
        "lattices": (np.float32, (3, 3)), "num_atoms": (np.int32, ()),
        "properties": (np.float32, (2,)),
    }  # fmt: skip


@pytest.mark.parametrize("num_workers", [0, 1, None])
@pytest.mark.parametrize("bad", [[], [1, 2]])
def test_no_crystals(num_workers, bad):
    (part,) = parse(make_records(len(bad), bad=bad), read, num_workers, 2)
    assert (part.frac_coords.shape, part.lattices.shape) == ((0, 3), (0, 3, 3))
    assert (part.atom_types.shape, part.properties.shape) == ((0,), (0, 2))
    assert len(part.rejected) == len(bad)


def test_a_property_out_of_the_range_of_float32():
    (part,) = parse([Record("", "1", "", (1e300, -1e300))], read, 0, 2)
    assert part.properties.tolist() == [[np.inf, -np.inf]]


@pytest.mark.parametrize(("num", "cpus", "expected"), [(30, 2, 0), (31, 2, 2), (31, 1, 0)])
def test_workers_are_started_only_for_many_records(monkeypatch, num, cpus, expected):
    started = [0]

    def record_workers(chunks, read, num_workers, num_properties):
        for chunk in chunks:
            started[0] = num_workers
            yield parsing._parse(chunk, read, num_properties)

    monkeypatch.setattr(parsing, "_parse_in_workers", record_workers)
    monkeypatch.setattr(parsing, "num_cpus", lambda: cpus)
    parts = list(parse(make_records(num), read, None, 2))
    assert [id_ for part in parts for id_ in part.ids] == [str(i) for i in range(1, num + 1)]
    assert started == [expected]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_records_are_read_only_as_needed(num_workers):
    """So memory does not grow with the number of records."""
    taken = 0

    def endless() -> Iterator[Record]:
        nonlocal taken
        while True:
            taken += 1
            yield Record(f"row {taken}", "1", "")

    parts = parse(endless(), read, num_workers)
    for i in range(1, 30):
        assert len(next(parts).ids) == 3
        assert taken <= 3 * (i + 2 * num_workers + 1)
    parts.close()


@pytest.mark.parametrize("where", [1, 25])
def test_the_death_of_a_worker_is_a_clear_error(where):
    with pytest.raises(
        DataError, match=r"A worker process died while reading row .*data\.num_workers=0"
    ):
        list(parse(make_records(40, die=[where]), read, 2, 2))


def test_an_error_of_the_reader_is_passed_on():
    def broken() -> Iterator[Record]:
        yield from make_records(9)
        raise DataError("no more of it")

    with pytest.raises(DataError, match="no more of it"):
        list(parse(broken(), read, 1, 2))


def test_a_negative_number_of_workers():
    with pytest.raises(UserError, match="num_workers must be at least 0, got -1"):
        list(parse([], read, -1))


WORKERS = """
import itertools, multiprocessing, sys
sys.path.insert(0, "tests/data")
from test_parsing import read
from src.data.parsing import parse
from src.data.readers import Record
records = (Record("", "1", "") for _ in itertools.count())
for part in parse(records, read, 2):
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    sys.stdin.readline()  # waits forever
"""


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="looks for processes in /proc")
def test_workers_end_with_the_main_process():
    process = subprocess.Popen(
        [sys.executable, "-c", WORKERS],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    workers = [Path(f"/proc/{pid}/stat") for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while any(path.exists() and " Z " not in path.read_text() for path in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
