"""Read crystals from common file formats, and write them in the same formats."""

from src.data.structures.convert import (
    check_numbers,
    split_batch,
    to_atoms,
    to_crystal,
    to_structure,
)
from src.data.structures.read import (
    FILE_INDEX,
    SPLIT_INDEX_PREFIX,
    SPLIT_NAMES,
    NamedStructure,
    Skipped,
    StructureReader,
    iter_structures,
    read_structures,
)
from src.data.structures.write import write_structures, written_name

__all__ = [
    "FILE_INDEX",
    "SPLIT_INDEX_PREFIX",
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
