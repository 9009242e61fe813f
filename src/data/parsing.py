"""A stream of records to a stream of crystals in flat arrays, by worker processes where it is long.

What is in memory does not grow with the number of records. This module imports no torch, so that
workers start quickly.
"""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice

import numpy as np

from src.data.cells import CELLS, choose_cell
from src.data.cif import MAX_NUM_ATOMS, Crystal, CrystalError, check_crystal
from src.data.readers import DataError, Record, crystal_of
from src.utils.processes import WorkerContext, follow_parent, num_cpus

CHUNK = 256  # records that a worker takes at once, a twentieth of a second
LARGE = 10_000  # records: fewer are read here before workers have started
MAX_ATOMIC_NUMBER = 99


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How records become crystals, and which are refused.

    Args:
        cell: of `src.data.cells.CELLS`; see `choose_cell`.
        max_num_atoms: refuse larger crystals; None for no limit.
        max_atomic_number: refuse crystals with heavier elements.
        min_distance: refuse crystals with atoms closer than this, in Å.

    Raises:
        DataError: for a cell that is none of those.
    """

    cell: str = "niggli"
    max_num_atoms: int | None = None
    max_atomic_number: int = MAX_ATOMIC_NUMBER
    min_distance: float = 0.5

    def __post_init__(self) -> None:
        if self.cell not in CELLS:
            raise DataError(f"data.cell is one of {', '.join(CELLS)}, not {self.cell!r}")


def read_record(record: Record, options: ReadOptions) -> Crystal:
    """The crystal of a record.

    Raises:
        CrystalError: if it cannot be used; the message says why.
    """
    crystal = crystal_of(record)
    limits = (options.max_atomic_number, options.min_distance)
    if options.cell in ("primitive", "conventional"):
        # overlapping atoms have no symmetry to find, and it says more that they overlap
        check_crystal(crystal, MAX_NUM_ATOMS, *limits)
    crystal = choose_cell(crystal, options.cell)
    check_crystal(crystal, options.max_num_atoms or MAX_NUM_ATOMS, *limits)
    return crystal


@dataclass(frozen=True, slots=True)
class Parsed:
    """The crystals of some records, and what was refused.

    Args:
        atom_types: (N,) uint8 atomic numbers.
        frac_coords: (N, 3) float32.
        lattices: (B, 3, 3) float32, Å.
        num_atoms: (B,) int32.
        ids: B names.
        properties: (B, number of properties) float32.
        rejected: records that are no crystals, each with the reason.
    """

    atom_types: np.ndarray
    frac_coords: np.ndarray
    lattices: np.ndarray
    num_atoms: np.ndarray
    ids: list[str]
    properties: np.ndarray
    rejected: list[tuple[Record, str]]


def parse(
    records: Iterable[Record],
    read: Callable[[Record], Crystal],
    num_workers: int | None = None,
    num_properties: int = 0,
) -> Iterator[Parsed]:
    """Yield the crystals of records, in their order, `CHUNK` records at a time and once at least.

    Args:
        read: makes a crystal of a record, or raises a `CrystalError`. It is sent to the workers, so
            it must be found outside the main script.
        num_workers: processes that call it; 0: this one does. None: this one for the first `LARGE`
            records, and one for each CPU if there are more.
        num_properties: of each record.

    Raises:
        DataError: if a worker dies.
        ValueError: if num_workers is negative.
    """
    if num_workers is not None and num_workers < 0:
        raise ValueError(f"num_workers must be at least 0, got {num_workers}")
    chunks = _chunks(records)
    here = 0
    if num_workers is None:
        # so many CPUs are worth it, and a daemon may start no processes
        alone = num_cpus() == 1 or multiprocessing.current_process().daemon
        num_workers = 0 if alone else num_cpus()
        here = LARGE // CHUNK
    for chunk in islice(chunks, here if num_workers else None):
        yield _parse(chunk, read, num_properties)
    if num_workers:
        yield from _parse_in_workers(chunks, read, num_workers, num_properties)


def _chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    """The records in lists of `CHUNK`; an empty one if there are none."""
    iterator = iter(records)
    yield list(islice(iterator, CHUNK))
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def _parse_in_workers(
    chunks: Iterable[list[Record]],
    read: Callable[[Record], Crystal],
    num_workers: int,
    num_properties: int,
) -> Iterator[Parsed]:
    pool = ProcessPoolExecutor(num_workers, WorkerContext(), follow_parent)
    pending: deque[tuple[Record | None, Future[Parsed]]] = deque()
    first = None
    try:
        for chunk in chunks:
            # twice as many as can run, so that no worker has to wait for this process
            if len(pending) >= 2 * num_workers:
                first, future = pending.popleft()
                yield future.result()
            pending.append(
                (chunk[0] if chunk else None, pool.submit(_parse, chunk, read, num_properties))
            )
        while pending:
            first, future = pending.popleft()
            yield future.result()
    except BrokenProcessPool as error:
        where = f" reading {first.where} or what comes after it" if first else ""
        raise DataError(
            f"A worker process died{where}. If the machine was short of memory, take fewer with "
            "data.num_workers; data.num_workers=0 reads in the main process"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _parse(records: list[Record], read: Callable[[Record], Crystal], num_properties: int) -> Parsed:
    crystals, kept, rejected = [], [], []
    for record in records:
        try:
            crystals.append(read(record))
        except CrystalError as error:
            rejected.append((record, str(error)))
        else:
            kept.append(record)
    with np.errstate(over="ignore"):  # a property beyond float32 is infinite
        properties = np.array([record.properties for record in kept], np.float32)
    return Parsed(
        np.concatenate([np.zeros(0, np.uint8), *(c.atom_types for c in crystals)]).astype(np.uint8),
        np.concatenate([np.zeros((0, 3)), *(c.frac_coords for c in crystals)]).astype(np.float32),
        np.array([c.lattice for c in crystals], np.float32).reshape(-1, 3, 3),
        np.array([c.num_atoms for c in crystals], np.int32),
        [record.id for record in kept],
        properties.reshape(len(kept), num_properties),
        rejected,
    )
