"""Convert a stream of records to crystals in flat arrays, in worker processes if it is long.

Memory does not grow with the number of records. This module does not import torch, so that workers
start quickly.
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
from src.data.cif import MAX_NUM_ATOMS
from src.data.crystal import Crystal, CrystalError, check_crystal
from src.data.readers import DataError, Record, crystal_of
from src.utils.errors import UserError
from src.utils.processes import WorkerContext, follow_parent, num_cpus

CHUNK = 256  # records per task of a worker; takes about 0.05 s
LARGE = 10_000  # records; fewer are read faster in this process than by starting workers
MAX_ATOMIC_NUMBER = 99


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to convert records to crystals, and which to reject.

    Args:
        cell: one of `src.data.cells.CELLS`; see `choose_cell`.
        max_num_atoms: reject crystals with more atoms; None for no limit.
        max_atomic_number: reject crystals with heavier elements.
        min_distance: reject crystals with two atoms closer than this, Å.

    Raises:
        DataError: if `cell` is not one of `CELLS`.
    """

    cell: str = "niggli"
    max_num_atoms: int | None = None
    max_atomic_number: int = MAX_ATOMIC_NUMBER
    min_distance: float = 0.5

    def __post_init__(self) -> None:
        if self.cell not in CELLS:
            raise DataError(f"data.cell must be one of {', '.join(CELLS)}, not {self.cell!r}")


def read_record(record: Record, options: ReadOptions) -> Crystal:
    """The crystal in a record, in the chosen cell.

    Raises:
        CrystalError: if it cannot be used; the message says why.
    """
    crystal = crystal_of(record)
    limits = (options.max_atomic_number, options.min_distance)
    if options.cell in ("primitive", "conventional"):
        # spglib finds no symmetry if atoms overlap; the overlap is the more helpful reason
        check_crystal(crystal, MAX_NUM_ATOMS, *limits)
    crystal = choose_cell(crystal, options.cell)
    check_crystal(crystal, options.max_num_atoms or MAX_NUM_ATOMS, *limits)
    return crystal


@dataclass(frozen=True, slots=True)
class ParsedChunk:
    """The crystals in a chunk of records, and the rejected records.

    Args:
        atom_types: (N,) uint8 atomic numbers.
        frac_coords: (N, 3) float32 fractional coordinates.
        lattices: (B, 3, 3) float32, Å.
        num_atoms: (B,) int32.
        ids: IDs of the B crystals.
        properties: (B, number of properties) float32.
        rejected: the rejected records, each with the reason.
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
) -> Iterator[ParsedChunk]:
    """Yield the crystals in records, in order, `CHUNK` records at a time.

    Yields at least once, even if there are no records.

    Args:
        read: converts a record to a crystal, or raises a `CrystalError`. It is pickled for the
            workers, so it must not be defined in the main script.
        num_workers: processes that call `read`; 0 for this process only. None for this process for
            the first `LARGE` records, then one process per CPU.
        num_properties: number of properties of each record.

    Raises:
        DataError: if a worker dies.
        UserError: if `num_workers` is negative.
    """
    if num_workers is not None and num_workers < 0:
        raise UserError(f"num_workers must be at least 0, got {num_workers}")
    chunks = _chunks(records)
    num_local = 0  # chunks parsed in this process before workers are started
    if num_workers is None:
        # a daemon process cannot start workers
        no_workers = num_cpus() == 1 or multiprocessing.current_process().daemon
        num_workers = 0 if no_workers else num_cpus()
        num_local = LARGE // CHUNK
    for chunk in islice(chunks, num_local if num_workers else None):
        yield _parse(chunk, read, num_properties)
    if num_workers:
        yield from _parse_in_workers(chunks, read, num_workers, num_properties)


def _chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    """The records in lists of `CHUNK`; a single empty list if there are no records."""
    iterator = iter(records)
    yield list(islice(iterator, CHUNK))
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def _parse_in_workers(
    chunks: Iterable[list[Record]],
    read: Callable[[Record], Crystal],
    num_workers: int,
    num_properties: int,
) -> Iterator[ParsedChunk]:
    pool = ProcessPoolExecutor(num_workers, WorkerContext(), follow_parent)
    pending: deque[tuple[Record | None, Future[ParsedChunk]]] = deque()
    first = None
    try:
        for chunk in chunks:
            # twice as many tasks as workers, so that no worker waits for this process
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
        where = f" while reading {first.where} or one of the crystals after it" if first else ""
        raise DataError(
            f"A worker process died{where}. If it ran out of memory, use fewer workers: set "
            "data.num_workers; data.num_workers=0 reads in the main process"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _parse(
    records: list[Record], read: Callable[[Record], Crystal], num_properties: int
) -> ParsedChunk:
    crystals, kept, rejected = [], [], []
    for record in records:
        try:
            crystals.append(read(record))
        except CrystalError as error:
            rejected.append((record, str(error)))
        else:
            kept.append(record)
    with np.errstate(over="ignore"):  # values too large for float32 become infinite
        properties = np.array([record.properties for record in kept], np.float32)
    return ParsedChunk(
        np.concatenate([np.zeros(0, np.uint8), *(c.atom_types for c in crystals)]).astype(np.uint8),
        np.concatenate([np.zeros((0, 3)), *(c.frac_coords for c in crystals)]).astype(np.float32),
        np.array([c.lattice for c in crystals], np.float32).reshape(-1, 3, 3),
        np.array([c.num_atoms for c in crystals], np.int32),
        [record.id for record in kept],
        properties.reshape(len(kept), num_properties),
        rejected,
    )
