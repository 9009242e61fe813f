"""Tell whether a data set is the one that a run was begun with."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from src.data.dataset import CrystalDataset

# Another version of a library may find a cell that differs in its last digits.
RELATIVE_TOLERANCE = 1e-4


def fingerprint(dataset: CrystalDataset) -> dict[str, Any]:
    """What identifies a data set and the order of its crystals, as plain types.

    Returns:
        `num_crystals`, `sha256` (of the IDs, numbers of atoms and atom types) and `volume`, the
        mean volume of the cells in Å^3.
    """
    digest = hashlib.sha256(json.dumps(list(dataset.ids)).encode())
    for tensor in (dataset.num_atoms.long(), dataset.atom_types.long()):
        digest.update(tensor.cpu().numpy().tobytes())
    volumes = dataset.lattices.double().det().abs()
    return {
        "num_crystals": len(dataset),
        "sha256": digest.hexdigest(),
        "volume": float(volumes.mean()) if len(dataset) else 0.0,
    }


def is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two fingerprints are of the same data set."""
    return one["sha256"] == other["sha256"] and math.isclose(
        one["volume"], other["volume"], rel_tol=RELATIVE_TOLERANCE
    )
