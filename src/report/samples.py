"""Write the HTML page of generated crystals, a single file that works offline."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ase import Atoms
from pymatgen.core import Structure

from src.data.structures import NamedStructure, read_structures, to_atoms, to_crystal
from src.metrics.generation.nearest import nearest_of_formula
from src.metrics.matching import PYMATGEN
from src.metrics.space_groups import space_group
from src.report.distributions import group_symbol
from src.report.figures import settings_text
from src.report.frame import fill_frame, read_asset
from src.report.page import element_styles, rounded, to_drawing
from src.utils.output import new_file

MAX_CRYSTALS = 3000  # on a page


def write_samples_report(
    folder: str | Path,
    known: Sequence[NamedStructure] | None = None,
    source: str = "",
    max_crystals: int = MAX_CRYSTALS,
) -> None:
    """Write `report.html`, with the crystals in 3D, from the other files in a folder of samples.

    Args:
        folder: with `samples.json` and `samples.extxyz`, as `sample_ldm` writes them.
        known: crystals, such as the training set, of which the nearest is shown beside each sample
            (see `nearest_of_formula`). None: no comparison.
        source: what the known crystals are, to be named on the page.
        max_crystals: the first so many samples are shown.

    Raises:
        FileNotFoundError, DataError: if a file is missing or cannot be read.
    """
    folder = Path(folder).expanduser()
    content = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    rows = content.pop("samples")
    structures = {item.id: item.structure for item in read_structures(folder / "samples.extxyz")[0]}
    shown = rows[:max_crystals]
    samples = [_sample(row, structures.get(row["id"])) for row in shown]
    drawn = [structures[row["id"]] for row in shown if row["id"] in structures]
    if known is not None:
        drawn += _add_nearest(samples, structures, known)
    settings = settings_text(PYMATGEN)
    data = {
        "about": [
            [name.replace("_", " "), str(content[name])]
            for name in _ABOUT
            if content.get(name) not in (None, {})
        ],
        "samples": rounded(samples),
        "elements": element_styles([atoms_of(crystal) for crystal in drawn]),
        "counts": content["counts"],
        "known": None
        if known is None
        else {"count": len(known), "source": source, "settings": settings},
        "total": len(rows),
    }
    title = f"{len(rows):,} generated crystals"
    page = fill_frame("samples", title, data, libraries=read_asset("cards.js"))
    with new_file(folder / "report.html", overwrite=True) as path:
        path.write_text(page, encoding="utf-8")


_ABOUT = ("checkpoint", "seed", "num_atoms", "compositions", "conditions", "sampling_steps",
          "cfg_scale", "autoguidance", "attempts")  # fmt: skip


def _sample(row: Mapping[str, Any], structure: Structure | None) -> dict[str, Any]:
    kept = {name: row[name] for name in ("id", "num_atoms", "valid_structure", "valid_composition",
                                         "reason")}  # fmt: skip
    kept |= {"formula": _without_ones(row["formula"]), "crystal": None}
    if structure is not None:
        kept["crystal"] = to_drawing(atoms_of(structure))
    if row["valid_structure"] and structure is not None:
        kept |= {"space_group": space_group_symbol(structure), "density": float(structure.density)}
    return kept


def _add_nearest(
    samples: Sequence[dict[str, Any]],
    structures: Mapping[str, Structure],
    known: Sequence[NamedStructure],
) -> list[Structure]:
    """Add `known` to the samples that have one; return those known crystals."""
    valid = [s for s in samples if s["valid_structure"] and s["id"] in structures]
    crystals = [structures[sample["id"]] for sample in valid]
    added = []
    found = nearest_of_formula(crystals, [item.structure for item in known])
    for sample, nearest in zip(valid, found, strict=True):
        if nearest is not None:
            item = known[nearest.reference]
            sample["known"] = {
                "id": item.id,
                "rms": nearest.rms,
                "space_group": space_group_symbol(item.structure),
                "crystal": to_drawing(atoms_of(item.structure)),
            }
            added.append(item.structure)
    return added


def _without_ones(formula: str) -> str:
    """`SrTiO3` for `Sr1 Ti1 O3`."""
    return re.sub(r"(?<=[a-zA-Z])1(?= |$)", "", formula).replace(" ", "")


def space_group_symbol(structure: Structure) -> str | None:
    """Such as `Fm-3m (225)`."""
    found = space_group(structure)
    return None if found is None else group_symbol(found.number)


def atoms_of(structure: Structure) -> Atoms:
    return to_atoms(to_crystal(structure))
