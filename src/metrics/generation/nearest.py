"""The known crystal that a generated one resembles most."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pymatgen.core import Structure

from src.metrics.structure_matching.calls import match_matrix
from src.metrics.structure_matching.crystals import PreparedCrystals
from src.metrics.structure_matching.settings import PYMATGEN, MatcherSettings


@dataclass(frozen=True, slots=True)
class Nearest:
    """The nearest known crystal of the same reduced formula.

    Attributes:
        reference: its index.
        rms: of the match, in units of (V/N)^(1/3); None if the two do not match.
    """

    reference: int
    rms: float | None


def nearest_of_formula(
    crystals: Sequence[Structure],
    references: Sequence[Structure],
    settings: MatcherSettings = PYMATGEN,
) -> list[Nearest | None]:
    """For each crystal, the reference of the same reduced formula that it matches best.

    If it matches none of them, the one whose volume per atom is closest to its own.

    Args:
        crystals: ordered crystals with a finite cell.
        references: the same.
        settings: tolerances of the matcher.

    Returns:
        One for each crystal, in order; None if no reference has its formula.
    """
    mine = PreparedCrystals(crystals)
    formulas = {mine.formula(i) for i in range(len(mine))}
    everything = PreparedCrystals(references)
    kept = [j for j in range(len(everything)) if everything.formula(j) in formulas]
    if not kept:
        return [None] * len(crystals)
    others = everything.part(kept)
    rms = match_matrix(mine, others, settings, num_workers=1)
    rms[np.isnan(rms)] = np.inf  # pairs that could not be compared
    of_formula = defaultdict(list)
    for k in range(len(others)):
        of_formula[others.formula(k)].append(k)
    found: list[Nearest | None] = []
    for i, crystal in enumerate(crystals):
        candidates = of_formula.get(mine.formula(i))
        if not candidates:
            found.append(None)
            continue
        best = min(candidates, key=lambda k: rms[i, k])
        if np.isfinite(rms[i, best]):
            found.append(Nearest(kept[best], float(rms[i, best])))
        else:
            volumes = [_volume_per_atom(references[kept[k]]) for k in candidates]
            offsets = np.abs(np.log(np.array(volumes) / _volume_per_atom(crystal)))
            found.append(Nearest(kept[candidates[int(offsets.argmin())]], None))
    return found


def _volume_per_atom(crystal: Structure) -> float:
    return crystal.volume / len(crystal)
