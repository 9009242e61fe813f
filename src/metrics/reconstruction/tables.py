"""Tabulate an evaluation per crystal, and group it by size, element and rarity."""

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
from src.metrics.matching import CDVAE, PYMATGEN, AnyMatcher, PairResult
from src.metrics.reconstruction.evaluate import SETTINGS
from src.metrics.space_groups import SpaceGroup, space_group
from src.utils.formulas import reduced_formula
from src.utils.geometry import transform, wrapped_difference

log = logging.getLogger(__name__)

MAX_METRE_PAIRS = {"fast": 400, "pymatgen": 20}  # per crystal, by matcher
RARE_SHARE = 0.05  # the rarest elements or sizes make up at most this part of the training set
Results = Sequence[Sequence[PairResult]]  # for each of SETTINGS, for each crystal


def crystal_table(
    ids: Sequence[str],
    originals: CrystalBatch,
    reconstructions: CrystalBatch,
    structures: Sequence[Structure],
    rebuilt: Sequence[Structure | None],
    results: Results,
    results_sampled: Results,
) -> pd.DataFrame:
    """Build a table with a row for each crystal.

    The columns are:

    - `id`, `formula`, `num_atoms`;
    - `matched`, `rms` and `status` from the matcher with CDVAE's tolerances, `matched_sampled` for
      the reconstruction from a posterior sample, and the same with the suffix `_default` for
      pymatgen's tolerances;
    - `atom_types_right` (fraction), `coords_rmsd` (Å), `lengths_error` (Å), `angles_error`
      (degrees) and `volume_error` (fraction), averaged over the crystal;
    - `spacegroup`, `spacegroup_reconstructed` and `space_group_change` (`kept`, `lost`, `gained`,
      `changed`, or empty if spglib finds no space group for the original);
    - `valid_structure`, `valid_composition` and `valid` (both) of the reconstruction, and
      `valid_original`;
    - `reason`: why the reconstruction does not match, empty if it does;
    - the properties of the data set.

    Args:
        structures: the originals.
        rebuilt: their reconstructions, None for those with non-finite numbers.
        results, results_sampled: match results of the reconstructions from the posterior means and
            from posterior samples.
    """
    correct = (reconstructions.atom_types == originals.atom_types).double()
    difference = wrapped_difference(reconstructions.frac_coords, originals.frac_coords)
    squared = transform(difference, originals.lattices[originals.batch]).square().sum(dim=1)

    def mean_over_atoms(values: Tensor) -> np.ndarray:
        return torch.segment_reduce(values, "mean", lengths=originals.num_atoms).numpy()

    columns: dict[str, Any] = {
        "id": list(ids),
        "formula": [reduced_formula(s.composition) for s in structures],
        "num_atoms": originals.num_atoms.numpy(),
    }
    for suffix, found, sampled in zip(("", "_default"), results, results_sampled, strict=True):
        columns[f"matched{suffix}"] = [r.matched for r in found]
        columns[f"rms{suffix}"] = [r.rms for r in found]
        columns[f"status{suffix}"] = [r.status for r in found]
        columns[f"matched_sampled{suffix}"] = [r.matched for r in sampled]
    volume_error = (reconstructions.volumes - originals.volumes).abs() / originals.volumes
    columns |= {
        "atom_types_right": mean_over_atoms(correct),
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
        "space_group_change": [_space_group_change(old, new) for old, new in groups],
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


def _space_group_change(old: SpaceGroup | None, new: SpaceGroup | None) -> str | None:
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
    """Fractions of crystals in a `crystal_table` that are valid or keep their space group.

    Returns:
        A dict with two entries:

        - `gated`: match rates that count a match only if geometry and composition of the
          reconstruction are valid, and the fractions that are valid (SMACT rejects about a tenth of
          real crystals);
        - `space_group`: the number of crystals in which spglib finds a space group, and the
          fractions of these that kept it (same number), lost symmetry (fewer operations), gained
          symmetry (more operations) or changed it (equally many).
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
    """The metrics of a `crystal_table` for each number of atoms."""
    rows = []
    for num_atoms, part in table.groupby("num_atoms"):
        part_rates = rates(part)
        rows.append(
            {
                "num_atoms": num_atoms,
                "crystals": len(part),
                "match_rate": part["matched"].mean(),
                "match_rate_default": part["matched_default"].mean(),
                "match_rate_sampled": part["matched_sampled"].mean(),
                "match_rate_sampled_default": part["matched_sampled_default"].mean(),
                "match_rate_gated": part_rates["gated"]["match_rate"],
                "match_rate_gated_default": part_rates["gated"]["match_rate_default"],
                "rmse": part["rms"].mean(),
                "rmse_default": part["rms_default"].mean(),
                "crmse": part["rms"].astype(float).fillna(CDVAE.stol).mean(),
                "crmse_default": part["rms_default"].astype(float).fillna(PYMATGEN.stol).mean(),
                "atom_type_accuracy": part["atom_types_right"].mean(),
                "coords_rmsd": np.sqrt((part["coords_rmsd"] ** 2).mean()),
                "lengths_mae": part["lengths_error"].mean(),
                "angles_mae": part["angles_error"].mean(),
                "volume_mape": part["volume_error"].mean(),
                "space_group_kept": part_rates["space_group"]["kept"],
                "valid": part_rates["gated"]["valid"],
            }
        )
    return rows


def by_element(
    table: pd.DataFrame, originals: CrystalBatch, reconstructions: CrystalBatch
) -> dict[str, dict[str, Any]]:
    """The metrics for each element, by its symbol.

    Returns:
        For each element, the number of its `atoms` and their `atom_type_accuracy`; `taken_for`, the
        three elements that it was most often mistaken for, with counts; the number of `crystals`
        that contain it, and their `match_rate` and `match_rate_default`.
    """
    true, predicted = originals.atom_types.tolist(), reconstructions.atom_types.tolist()
    predictions: dict[int, Counter[int]] = defaultdict(Counter)
    crystals_with: dict[int, set[int]] = defaultdict(set)
    for z, other, crystal in zip(true, predicted, originals.batch.tolist(), strict=True):
        predictions[z][other] += 1
        crystals_with[z].add(crystal)
    rows = {}
    for z, counts in sorted(predictions.items()):
        part = table.iloc[sorted(crystals_with[z])]
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
    """The metrics of crystals that are unlike most of the training set.

    Args:
        training_set: counts of the training set from `CrystalDataset.census`.

    Returns:
        Two rows. `elements` covers the crystals that contain one of the rarest elements, which
        together make up at most `RARE_SHARE` of the training atoms. `sizes` covers the crystals
        whose number of atoms is one of the rarest, which together make up at most `RARE_SHARE` of
        the training crystals. Elements and sizes that are absent from the training set are rare.
        Each row has the number of `crystals` and their `match_rate`, `match_rate_default` and
        `rmse`, NaN if there are none.
    """
    common_elements = _common(training_set["elements"])
    is_rare = torch.tensor([z not in common_elements for z in originals.atom_types.tolist()])
    with_rare_element = originals.batch[is_rare].unique().numpy()
    common_sizes = _common(training_set["num_atoms"])
    of_rare_size = [i for i, n in enumerate(table["num_atoms"]) if n not in common_sizes]
    return {
        name: {
            "crystals": len(rows),
            "match_rate": table["matched"].iloc[rows].mean(),
            "match_rate_default": table["matched_default"].iloc[rows].mean(),
            "rmse": table["rms"].iloc[rows].mean(),
        }
        for name, rows in (("elements", with_rare_element), ("sizes", of_rare_size))
    }


def _common(counts: Mapping[str, int]) -> set[int]:
    """All keys except the rarest, which together make up at most `RARE_SHARE` of the counts."""
    rarest_first = sorted(counts, key=lambda key: counts[key])
    totals = np.cumsum([counts[key] for key in rarest_first])
    limit = RARE_SHARE * sum(counts.values())
    return {int(key) for key, total in zip(rarest_first, totals, strict=True) if total > limit}


def metre(
    structures: Sequence[Structure],
    rebuilt: Sequence[Structure | None],
    results: Results,
    matcher: AnyMatcher,
    progress: bool = False,
) -> dict[str, float | None]:
    """METRe (arXiv:2509.12178): the fraction of crystals that match any reconstruction in the set.

    Crystals that do not match their own reconstruction are compared with all others of the same
    composition.

    Returns:
        `metre` with CDVAE's tolerances and `metre_default` with pymatgen's; None if there are more
        pairs to compare per crystal than `MAX_METRE_PAIRS` says.
    """
    by_formula = defaultdict(list)
    for j, structure in enumerate(rebuilt):
        if structure is not None:
            by_formula[reduced_formula(structure.composition)].append(j)
    out: dict[str, float | None] = {}
    for name, settings, own in zip(("metre", "metre_default"), SETTINGS, results, strict=True):
        unmatched = [i for i, result in enumerate(own) if not result.matched]
        others_of = {i: by_formula[reduced_formula(structures[i].composition)] for i in unmatched}
        num_pairs = sum(len(others) for others in others_of.values())
        if num_pairs > MAX_METRE_PAIRS[matcher.name] * len(structures):
            log.warning("%s is left out: it would take %s more comparisons", name, f"{num_pairs:,}")
            out[name] = None
            continue
        pairs = [(i, j) for i, others in others_of.items() for j in others if j != i]
        found = matcher.match(
            structures,
            rebuilt,
            settings,
            pairs=[(j, i) for i, j in pairs],
            progress=bool(pairs) and progress and "matching with other reconstructions",
        )
        rescued = {i for (i, _), result in zip(pairs, found, strict=True) if result.matched}
        out[name] = 1 - (len(unmatched) - len(rescued)) / len(structures)
    return out
