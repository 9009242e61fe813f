"""An evaluation crystal by crystal, and by kinds of crystals."""

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from ase.data import chemical_symbols
from pymatgen.core import Structure
from torch import Tensor

from src.data.schema import CrystalBatch
from src.metrics.generation.validity import invalid_reason, is_valid_composition
from src.metrics.matching import CDVAE, PYMATGEN, MatcherPool, PairResult
from src.metrics.reconstruction.evaluate import SETTINGS
from src.metrics.space_groups import SpaceGroup, space_group
from src.utils.formulas import reduced_formula
from src.utils.geometry import transform, wrapped_difference

log = logging.getLogger(__name__)

MAX_METRE_PAIRS = 20  # per crystal
RARE_SHARE = 0.05  # of the training set: the rarest elements, or sizes, that make up this much
Results = Sequence[Sequence[PairResult]]  # under each of SETTINGS, of each crystal


def crystal_table(
    ids: Sequence[str],
    originals: CrystalBatch,
    reconstructions: CrystalBatch,
    structures: Sequence[Structure],
    rebuilt: Sequence[Structure | None],
    results: Results,
    results_sampled: Results,
) -> pd.DataFrame:
    """A row for each crystal.

    Columns: `id`, `formula`, `num_atoms`; `matched`, `rms`, `status` of the matcher with CDVAE's
    settings, the same with `_default` at the end for pymatgen's, and `matched_sampled` of both;
    `atom_types_right` (share), `coords_rmsd` (Å), `lengths_error` (Å), `angles_error` (degrees) and
    `volume_error` (share), each a mean over the crystal; `spacegroup`, `spacegroup_reconstructed`
    and `space_group_change` (kept, lost, gained, changed, or empty where the original has none that
    is found); `valid_structure` and `valid_composition` of the reconstruction, `valid` for both,
    `valid_original`; `reason`, why it failed; and properties that ride along.

    Args:
        structures, rebuilt: of the originals, and of the reconstructions (None where they make
            none).
        results, results_sampled: of matching those, and others that were decoded from a sample.
    """
    right = (reconstructions.atom_types == originals.atom_types).double()
    difference = wrapped_difference(reconstructions.frac_coords, originals.frac_coords)
    squared = transform(difference, originals.lattices[originals.batch]).square().sum(dim=1)

    def mean_over_atoms(values: Tensor) -> np.ndarray:
        return torch.segment_reduce(values, "mean", lengths=originals.num_atoms).numpy()

    columns: dict[str, Any] = {
        "id": list(ids),
        "formula": [reduced_formula(s.composition) for s in structures],
        "num_atoms": originals.num_atoms.numpy(),
    }
    for end, found, sampled in zip(("", "_default"), results, results_sampled, strict=True):
        columns[f"matched{end}"] = [r.matched for r in found]
        columns[f"rms{end}"] = [r.rms for r in found]
        columns[f"status{end}"] = [r.status for r in found]
        columns[f"matched_sampled{end}"] = [r.matched for r in sampled]
    volume_error = (reconstructions.volumes - originals.volumes).abs() / originals.volumes
    columns |= {
        "atom_types_right": mean_over_atoms(right),
        "coords_rmsd": np.sqrt(mean_over_atoms(squared)),
        "lengths_error": (reconstructions.lengths - originals.lengths).abs().mean(dim=1).numpy(),
        "angles_error": (reconstructions.angles - originals.angles).abs().mean(dim=1).numpy(),
        "volume_error": volume_error.numpy(),
    }
    groups = [
        (space_group(true), None if new is None else space_group(new))
        for true, new in zip(structures, rebuilt, strict=True)
    ]
    columns |= {
        "spacegroup": [None if old is None else old.number for old, _ in groups],
        "spacegroup_reconstructed": [None if new is None else new.number for _, new in groups],
        "space_group_change": [_change(old, new) for old, new in groups],
    }
    invalid = ["no structure" if s is None else invalid_reason(s) for s in rebuilt]
    table = pd.DataFrame(columns).astype(
        {"spacegroup": "Int64", "spacegroup_reconstructed": "Int64"}
    )
    table["valid_structure"] = [reason is None for reason in invalid]
    table["valid_composition"] = [
        s is not None and is_valid_composition(s.composition) for s in rebuilt
    ]
    table["valid"] = table["valid_structure"] & table["valid_composition"]
    table["valid_original"] = [
        invalid_reason(s) is None and is_valid_composition(s.composition) for s in structures
    ]
    table["reason"] = [
        _reason(*row) for row in zip(results[0], table["atom_types_right"], invalid, strict=True)
    ]
    y = {
        f"property_{name}" if name in table else name: value.numpy()
        for name, value in (originals.y or {}).items()
    }
    return table.assign(**y)


def _change(old: SpaceGroup | None, new: SpaceGroup | None) -> str | None:
    if old is None:
        return None
    if new is None:
        return "lost"
    if new.number == old.number:
        return "kept"
    if new.operations_per_atom == old.operations_per_atom:
        return "changed"
    return "lost" if new.operations_per_atom < old.operations_per_atom else "gained"


def _reason(result: PairResult, atom_types_right: float, invalid: str | None) -> str:
    if result.matched:
        return ""
    if result.status != "unmatched":
        return f"{result.status}: {result.message}"
    if atom_types_right < 1:
        return f"{1 - atom_types_right:.0%} of the atom types are wrong"
    return invalid or "no match within the tolerances"


def rates(table: pd.DataFrame) -> dict[str, Any]:
    """What the shares of the crystals of a `crystal_table` say beyond the matching itself.

    Returns:
        A dict.

        - `gated`: match rates where a match counts only if the reconstruction is valid in geometry
          and composition, and the shares that are (SMACT refuses about a tenth of real crystals);
        - `space_group`: of the crystals in which spglib finds a group, the share of those that kept
          it (the same number), lost it (fewer operations), gained (more) or changed (as many).
    """
    changes = table["space_group_change"].dropna()
    kinds = {kind: (changes == kind).mean() for kind in ("kept", "lost", "gained", "changed")}
    return {
        "gated": {
            "match_rate": (table["matched"] & table["valid"]).mean(),
            "match_rate_default": (table["matched_default"] & table["valid"]).mean(),
            "valid": table["valid"].mean(),
            "valid_structure": table["valid_structure"].mean(),
            "valid_composition": table["valid_composition"].mean(),
            "valid_originals": table["valid_original"].mean(),
        },
        "space_group": {"crystals": len(changes), **kinds},
    }


def by_num_atoms(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The figures of a `crystal_table` for each number of atoms."""
    rows = []
    for num_atoms, part in table.groupby("num_atoms"):
        of_part = rates(part)
        rows.append(
            {
                "num_atoms": num_atoms,
                "crystals": len(part),
                "match_rate": part["matched"].mean(),
                "match_rate_default": part["matched_default"].mean(),
                "match_rate_sampled": part["matched_sampled"].mean(),
                "match_rate_sampled_default": part["matched_sampled_default"].mean(),
                "match_rate_gated": of_part["gated"]["match_rate"],
                "match_rate_gated_default": of_part["gated"]["match_rate_default"],
                "rmse": part["rms"].mean(),
                "rmse_default": part["rms_default"].mean(),
                "crmse": part["rms"].astype(float).fillna(CDVAE.stol).mean(),
                "crmse_default": part["rms_default"].astype(float).fillna(PYMATGEN.stol).mean(),
                "atom_type_accuracy": part["atom_types_right"].mean(),
                "coords_rmsd": np.sqrt((part["coords_rmsd"] ** 2).mean()),
                "lengths_mae": part["lengths_error"].mean(),
                "angles_mae": part["angles_error"].mean(),
                "volume_mape": part["volume_error"].mean(),
                "space_group_kept": of_part["space_group"]["kept"],
                "valid": of_part["gated"]["valid"],
            }
        )
    return rows


def by_element(
    table: pd.DataFrame, originals: CrystalBatch, reconstructions: CrystalBatch
) -> dict[str, dict[str, Any]]:
    """By symbol: `atoms`, the share of their types that are right, what the others were taken for
    (`taken_for`, the three most frequent), `crystals` that hold the element, and their match rates.
    """
    true, predicted = originals.atom_types.tolist(), reconstructions.atom_types.tolist()
    taken: dict[int, Counter[int]] = defaultdict(Counter)
    holders: dict[int, set[int]] = defaultdict(set)
    for z, other, crystal in zip(true, predicted, originals.batch.tolist(), strict=True):
        taken[z][other] += 1
        holders[z].add(crystal)
    rows = {}
    for z, counts in sorted(taken.items()):
        part = table.iloc[sorted(holders[z])]
        wrong = Counter({other: n for other, n in counts.items() if other != z}).most_common(3)
        rows[chemical_symbols[z]] = {
            "atoms": counts.total(),
            "atom_type_accuracy": counts[z] / counts.total(),
            "taken_for": {chemical_symbols[other]: n for other, n in wrong},
            "crystals": len(part),
            "match_rate": part["matched"].mean(),
            "match_rate_default": part["matched_default"].mean(),
        }
    return rows


def rare(
    table: pd.DataFrame, originals: CrystalBatch, training_set: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The figures of crystals that are unlike most of the training set.

    Args:
        training_set: what a model was trained on, as `CrystalDataset.census` counts it.

    Returns:
        Rows by `elements` and by `sizes`. A crystal is in the first if it holds one of the rarest
        elements, that together are at most `RARE_SHARE` of the training atoms, and in the second if
        its number of atoms is one of the rarest, of at most that share of the training crystals;
        what training has not seen is rare. Each row has `crystals` and, of these, `match_rate`,
        `match_rate_default` and `rmse`, NaN where there are none.
    """
    common = _common(training_set["elements"])
    unusual = torch.tensor([z not in common for z in originals.atom_types.tolist()])
    holders = originals.batch[unusual].unique().numpy()
    common = _common(training_set["num_atoms"])
    sizes = [i for i, n in enumerate(table["num_atoms"]) if n not in common]
    return {
        name: {
            "crystals": len(rows),
            "match_rate": table["matched"].iloc[rows].mean(),
            "match_rate_default": table["matched_default"].iloc[rows].mean(),
            "rmse": table["rms"].iloc[rows].mean(),
        }
        for name, rows in (("elements", holders), ("sizes", sizes))
    }


def _common(counts: Mapping[str, int]) -> set[int]:
    """The keys that are left when the rarest go, as long as these are at most `RARE_SHARE`."""
    rarest_first = sorted(counts, key=lambda key: counts[key])
    seen = np.cumsum([counts[key] for key in rarest_first])
    limit = RARE_SHARE * sum(counts.values())
    return {int(key) for key, total in zip(rarest_first, seen, strict=True) if total > limit}


def metre(
    structures: Sequence[Structure],
    rebuilt: Sequence[Structure | None],
    results: Results,
    pool: MatcherPool,
    progress: bool = False,
) -> dict[str, float | None]:
    """`metre` and `metre_default`: share of crystals that some reconstruction matches.

    One that its own does not match is compared with all others of the same composition, under
    CDVAE's and under pymatgen's settings. None where that would be more than `MAX_METRE_PAIRS`
    pairs per crystal. METRe: arXiv:2509.12178.
    """
    by_formula = defaultdict(list)
    for j, structure in enumerate(rebuilt):
        if structure is not None:
            by_formula[reduced_formula(structure.composition)].append(j)
    out: dict[str, float | None] = {}
    for name, settings, own in zip(("metre", "metre_default"), SETTINGS, results, strict=True):
        unmatched = [i for i, result in enumerate(own) if not result.matched]
        rivals = {i: by_formula[reduced_formula(structures[i].composition)] for i in unmatched}
        num_pairs = sum(len(others) for others in rivals.values())
        if num_pairs > MAX_METRE_PAIRS * len(structures):
            log.warning("%s is left out: it would take %s more pairs", name, f"{num_pairs:,}")
            out[name] = None
            continue
        pairs = [(i, j) for i, others in rivals.items() for j in others if j != i]
        targets, candidates = [structures[i] for i, _ in pairs], [rebuilt[j] for _, j in pairs]
        others = pool.match(targets, candidates, settings, progress=progress and bool(pairs))
        found = {i for (i, _), result in zip(pairs, others, strict=True) if result.matched}
        out[name] = 1 - (len(unmatched) - len(found)) / len(structures)
    return out
