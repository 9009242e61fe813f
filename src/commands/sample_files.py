"""Write samples to files, one sample at a time."""

import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import ase.io
from ase.data import chemical_symbols
from pymatgen.core import Composition
from rich.progress import track

from src.data.cif import Crystal, CrystalError, write_cif
from src.data.schema import CrystalBatch
from src.data.structures import check_numbers, split_batch, to_atoms
from src.data.symmetrize import symmetrize_crystal
from src.metrics.generation.stability.figures import symmetry_figures
from src.metrics.generation.validity import invalid_reason, is_valid_composition
from src.utils.errors import UserError
from src.utils.formulas import full_formula
from src.utils.strict_json import json_text


def write_samples(
    batches: Iterator[CrystalBatch],
    indices: range,
    folder: Path,
    format: str,
    rows: TextIO,
    symmetrizer: "Symmetrizer | None" = None,
    only_valid: bool = False,
) -> dict[str, Any]:
    """Write crystals to `folder` and a line of JSON for each to `rows`; return the counts.

    Args:
        batches: the samples.
        indices: of the samples, in the same order.
        format: of the CIF files: `folder` or `zip`.
        symmetrizer: changes each sample before it is written; None: leave them as they are.
        only_valid: write no files of samples with an invalid structure or composition. They have
            their rows all the same, and count.
    """
    counts = dict.fromkeys(("written", "valid_structure", "valid_composition", "valid"), 0)
    crystals = (crystal for batch in batches for crystal in split_batch(batch))
    with (
        (folder / "samples.extxyz").open("w", encoding="utf-8") as extxyz,
        _cif_writer(folder, format) as write,
    ):
        bar = track(crystals, "Sampling", total=len(indices), transient=True)
        for number, (index, crystal) in enumerate(zip(indices, bar, strict=True)):
            symmetry: dict[str, Any] = {}
            if symmetrizer is not None:
                crystal, symmetry = symmetrizer(crystal)
            row = {**_describe(f"sample-{index:06d}", crystal), **symmetry}
            valid = bool(row["valid_structure"] and row["valid_composition"])
            row["written"] &= valid or not only_valid
            if row["written"]:
                write(f"{row['id']}.cif", write_cif(crystal, row["id"]))
                ase.io.write(extxyz, to_atoms(crystal, row["id"]), format="extxyz")
            rows.write(f"{',' if number else ''}\n    {json_text(row, indent=None)}")
            for name in ("written", "valid_structure", "valid_composition"):
                counts[name] += bool(row[name])
            counts["valid"] += valid
    return counts


class Symmetrizer:
    """Averages crystals over the symmetry that they nearly have, and counts what that changes.

    Args:
        tolerance: see `symmetrize_crystal`, Å.

    Raises:
        UserError: if the tolerance is not positive.
    """

    def __init__(self, tolerance: float) -> None:
        if not tolerance > 0:
            raise UserError(f"symmetrize must be a positive tolerance in Å, not {tolerance}")
        self.tolerance = tolerance
        self._displacements: list[float] = []

    def __call__(self, crystal: Crystal) -> tuple[Crystal, dict[str, Any]]:
        """The crystal, and what `samples.json` says of it; unchanged if it is not finite."""
        try:
            found = symmetrize_crystal(crystal, self.tolerance)
        except CrystalError:
            return crystal, {}
        if found.gained:
            self._displacements.append(found.displacement)
        return found.crystal, {
            "space_group": found.after,
            "space_group_before": found.before,
            "displacement": found.displacement,
        }

    def figures(self) -> dict[str, Any]:
        """What `samples.json` says of all of them; see `symmetry_figures`."""
        return {"symmetrize": self.tolerance, **symmetry_figures(self._displacements)}


def _describe(id: str, crystal: Crystal) -> dict[str, Any]:
    composition = Composition(Counter(chemical_symbols[z] for z in crystal.atom_types))
    reason: str | None
    try:
        check_numbers(crystal)
        written, reason = True, invalid_reason(crystal)
    except CrystalError as error:
        written, reason = False, str(error)
    return {
        "id": id,
        "formula": full_formula(composition),
        "num_atoms": crystal.num_atoms,
        "valid_structure": reason is None,
        "valid_composition": is_valid_composition(composition),
        "written": written,
        "reason": reason,
    }


@contextmanager
def _cif_writer(folder: Path, format: str) -> Iterator[Callable[[str, str], Any]]:
    """Yield a function that writes a file, given its name and text, to `cifs/` or `cifs.zip`."""
    if format == "zip":
        with zipfile.ZipFile(folder / "cifs.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            yield archive.writestr
    else:
        (folder / "cifs").mkdir()
        yield lambda name, text: (folder / "cifs" / name).write_text(text, encoding="utf-8")


def join_rows(path: Path, header: dict[str, Any], rows: TextIO) -> None:
    """Write one JSON object: the header and, under `samples`, the rows, without loading them."""
    rows.seek(0)
    with path.open("w", encoding="utf-8") as file:
        file.write(json_text(header).removesuffix("\n}"))
        file.write(',\n  "samples": [')
        shutil.copyfileobj(rows, file)
        file.write("\n  ]\n}\n")
