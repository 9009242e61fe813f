"""Crystals in the files that people keep them in; and back into the same formats."""

from src.data.structures.convert import (
    check_numbers,
    split_batch,
    to_atoms,
    to_crystal,
    to_structure,
)
from src.data.structures.read import (
    FILE,
    SPLIT,
    SPLIT_NAMES,
    NamedStructure,
    Skipped,
    StructureReader,
    iter_structures,
    read_structures,
)
from src.data.structures.write import write_structures, written_name

__all__ = [
    "FILE",
    "SPLIT",
    "SPLIT_NAMES",
    "NamedStructure",
    "Skipped",
    "StructureReader",
    "check_numbers",
    "iter_structures",
    "read_structures",
    "split_batch",
    "to_atoms",
    "to_crystal",
    "to_structure",
    "write_structures",
    "written_name",
]
