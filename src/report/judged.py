"""Write the HTML page of a judged set of generated crystals, a single file that works offline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from plotly.offline import get_plotlyjs

from src.data.structures import NamedStructure
from src.metrics.generation.evaluate import Evaluation
from src.metrics.generation.fingerprint_distances import nearest_structures
from src.metrics.generation.intervals import interval_name
from src.metrics.generation.nearest import nearest_of_formula
from src.metrics.generation.stability.figures import IMPLAUSIBLE, METASTABLE
from src.metrics.matching import MatcherSettings
from src.report.distributions import element_table, histograms, in_bins
from src.report.figures import settings_text
from src.report.frame import fill_frame, read_asset
from src.report.maps import principal_components
from src.report.page import element_styles, rounded, to_drawing
from src.report.samples import atoms_of, space_group_symbol
from src.utils.formulas import full_formula
from src.utils.output import new_file

NUM_SHOWN = 24  # crystals of each choice
_NUM_BINS = 40


@dataclass(frozen=True, slots=True)
class Energies:
    """Energies above the hull.

    Attributes:
        above: for each generated crystal, in eV/atom; None where it is not known.
        source: what they are of, to be named on the page.
    """

    above: Sequence[float | None]
    source: str


@dataclass(frozen=True, slots=True)
class LatentMap:
    """Latents of crystals of both sets.

    Attributes:
        generated, reference: (n, Z) and (m, Z), standardized.
        generated_indices, reference_indices: (n,) and (m,), of the crystals in both sets.
        encoder: what encoded them, to be named on the page.
    """

    generated: np.ndarray
    reference: np.ndarray
    generated_indices: np.ndarray
    reference_indices: np.ndarray
    encoder: str


@dataclass(frozen=True, slots=True)
class JudgedSet:
    """A judged set of generated crystals.

    Attributes:
        items: the generated crystals.
        evaluation: of these.
        known, test: the crystals that they were compared with; `test` is `known` where there is no
            test reference.
        table: rows of text, of the figures, the set, and of real crystals.
        energies: None if they are not known.
        latents: None if there is no encoder.
    """

    items: Sequence[NamedStructure]
    evaluation: Evaluation
    known: Sequence[NamedStructure]
    test: Sequence[NamedStructure]
    table: Sequence[Sequence[str]]
    energies: Energies | None = None
    latents: LatentMap | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """Some of the crystals, to be shown together.

    Attributes:
        name: of the choice.
        note: how they were chosen.
        indices: of the crystals.
    """

    name: str
    note: str
    indices: list[int]


def write_judged_report(path: Path, judged: JudgedSet, seed: int = 0) -> None:
    """Write the page of a judged set to a new file.

    It shows some crystals in 3D (see `choose`), each with the nearest known crystal; distributions
    of both sets; frequencies of elements; energies above the hull; and a map of latents. What was
    not computed is left out.

    Args:
        path: of the file.
        judged: the set.
        seed: random seed of the random choice.
    """
    distances = _fingerprint_distances(judged)
    choices = choose(judged, {i: distance for i, (_, distance) in distances.items()}, seed)
    shown = list(dict.fromkeys(i for choice in choices for i in choice.indices))
    samples = {i: _sample(judged, i) for i in shown}
    drawn = [judged.items[i] for i in shown]
    drawn += _add_nearest(judged, samples, distances)
    metrics, found = judged.evaluation.metrics, judged.evaluation
    data = {
        "about": [
            [name.replace("_", " "), str(metrics[name])]
            for name in ("input", "reference", "test_reference", "encoder")
            if name in metrics
        ],
        "tiles": _tiles(metrics),
        "table": [list(row) for row in judged.table],
        "choices": [
            {
                "name": each.name,
                "note": each.note,
                "samples": [shown.index(i) for i in each.indices],
            }
            for each in choices
        ],
        "samples": rounded(list(samples.values())),
        "elements": element_styles([atoms_of(item.structure) for item in drawn]),
        "histograms": rounded(histograms(found.described, found.test_described)),
        "frequencies": rounded(element_table(found.described, found.test_described)),
        "energies": rounded(_energy_histogram(judged)),
        "map": rounded(_map(judged)),
        "settings": settings_text(_settings(metrics)),
    }
    libraries = "\n".join([get_plotlyjs(), read_asset("charts.js"), read_asset("cards.js")])
    title = f"{len(judged.items):,} generated crystals, judged"
    with new_file(path) as partial:
        partial.write_text(fill_frame("judged", title, data, libraries), encoding="utf-8")


def choose(judged: JudgedSet, distances: dict[int, float], seed: int) -> list[Choice]:
    """Choose crystals to show: at random, most novel, most stable, and invalid.

    Args:
        judged: the set.
        distances: of structurally valid crystals to the nearest test reference crystal, by
            fingerprint; empty without fingerprints.
        seed: random seed.

    Returns:
        At most `NUM_SHOWN` crystals of each. There are none of the most stable without energies.
    """
    verdicts = judged.evaluation.verdicts
    everything = range(len(verdicts))
    size = min(NUM_SHOWN, len(verdicts))
    at_random = np.random.default_rng(seed).choice(len(verdicts), size, replace=False)

    def least_known(i: int) -> tuple[bool, bool, float]:
        verdict = verdicts[i]
        is_new = verdict.known_prototype is False
        return not is_new, verdict.known_composition, -distances.get(i, 0.0)

    new = [i for i in everything if verdicts[i].valid and verdicts[i].unique and verdicts[i].novel]
    farthest = ", then by the distance of its fingerprint from all of the test reference"
    chosen = [
        Choice("random", "Drawn from all crystals.", sorted(at_random.tolist())),
        Choice(
            "most novel",
            "Valid, unique and novel: first those of a new prototype (if that was determined), "
            f"then those of a new composition{farthest if distances else ''}.",
            sorted(new, key=least_known)[:NUM_SHOWN],
        ),
    ]
    if judged.energies is not None:
        above = judged.energies.above
        low = sorted((e, i) for i, e in enumerate(above) if e is not None and e >= IMPLAUSIBLE)
        left_out = sum(e is not None and e < IMPLAUSIBLE for e in above)
        note = f"By energy above the hull: {judged.energies.source}."
        if left_out:
            note += f" {left_out} that are more than {-IMPLAUSIBLE} eV/atom below it are left out."
        chosen.append(Choice("most stable", note, [i for _, i in low[:NUM_SHOWN]]))
    invalid = [[i for i in everything if not verdicts[i].valid_structure]]
    invalid.append([i for i in everything if verdicts[i].valid_structure and not verdicts[i].valid])
    note = "The first of an invalid structure, and then of an invalid composition."
    half = max(NUM_SHOWN // 2, NUM_SHOWN - len(invalid[1]))
    chosen.append(Choice("invalid", note, [*invalid[0][:half], *invalid[1]][:NUM_SHOWN]))
    return chosen


def _sample(judged: JudgedSet, i: int) -> dict[str, Any]:
    """What a card shows of a crystal."""
    item, verdict = judged.items[i], judged.evaluation.verdicts[i]
    atoms = atoms_of(item.structure) if item.structure.is_ordered else None
    sample: dict[str, Any] = {
        "id": item.id,
        "formula": full_formula(item.structure.composition).replace(" ", ""),
        "num_atoms": len(item.structure),
        "valid_structure": verdict.valid_structure,
        "valid_composition": verdict.valid_composition,
        "reason": verdict.reason,
        "crystal": None if atoms is None else to_drawing(atoms),
        "notes": _notes(judged, i),
    }
    if verdict.valid_structure:
        sample["space_group"] = space_group_symbol(item.structure)
        sample["density"] = float(item.structure.density)
    return sample


def _notes(judged: JudgedSet, i: int) -> list[str]:
    verdict = judged.evaluation.verdicts[i]
    notes = []
    if verdict.valid_structure:
        if verdict.duplicate_of is not None:
            notes.append(f"same as {judged.items[verdict.duplicate_of].id}")
        if verdict.known_as is not None:
            notes.append(f"known as {judged.known[verdict.known_as].id}")
        elif verdict.known_prototype is False:
            notes.append("new prototype")
        else:
            notes.append("new structure" if verdict.known_composition else "new composition")
    if judged.energies is not None and (above := judged.energies.above[i]) is not None:
        notes.append(f"{above:.3f} eV/atom above the hull")
    return notes


def _fingerprint_distances(judged: JudgedSet) -> dict[int, tuple[int, float]]:
    """For each structurally valid crystal, the nearest one of `judged.test`, and its distance."""
    found = judged.evaluation
    ours = {
        i: x for i in found.judged if not isinstance(x := found.part.fingerprints.get(i, ""), str)
    }
    theirs = {
        found.test[n]: x
        for n, x in sorted(found.part.test_fingerprints.items())
        if not isinstance(x, str)
    }
    if not ours or not theirs:
        return {}
    indices, distances = nearest_structures(list(ours.values()), list(theirs.values()))
    places = list(theirs)
    return {
        i: (places[n], float(distance))
        for i, n, distance in zip(ours, indices.tolist(), distances, strict=True)
    }


def _add_nearest(
    judged: JudgedSet,
    samples: dict[int, dict[str, Any]],
    by_fingerprint: dict[int, tuple[int, float]],
) -> list[NamedStructure]:
    """Add the nearest known crystal to the valid samples that have one; return these crystals."""
    valid = [i for i, sample in samples.items() if sample["valid_structure"]]
    known = [judged.known[j] for j in judged.evaluation.known]
    found = nearest_of_formula(
        [judged.items[i].structure for i in valid], [item.structure for item in known]
    )
    added = []
    for i, nearest in zip(valid, found, strict=True):
        if nearest is not None:
            item, rms, caption = known[nearest.reference], nearest.rms, None
        elif i in by_fingerprint:
            place, distance = by_fingerprint[i]
            item, rms = judged.test[place], None
            caption = f"nearest fingerprint, of the test reference, distance {distance:.2f}"
        else:
            continue
        samples[i]["known"] = {
            "id": item.id,
            "formula": full_formula(item.structure.composition).replace(" ", ""),
            "rms": rms,
            "caption": caption,
            "space_group": space_group_symbol(item.structure),
            "crystal": to_drawing(atoms_of(item.structure)),
        }
        added.append(item)
    return added


def _tiles(metrics: dict[str, Any]) -> list[list[Any]]:
    """Names of the main figures, their values and intervals, and what they are of."""
    valid, every = "of those with a valid structure", f"of {metrics['num_generated']:,}"
    rows = [
        ("Valid structure and composition", "valid", every),
        ("Unique", "unique", valid),
        ("Novel", "novel", valid),
        ("Valid, unique and novel", "valid_unique_and_novel", every),
    ]
    return [[name, metrics[key], metrics[interval_name(key)], note] for name, key, note in rows]


def _energy_histogram(judged: JudgedSet) -> dict[str, Any] | None:
    if judged.energies is None:
        return None
    known = np.array([e for e in judged.energies.above if e is not None])
    histogram = in_bins("energy above the hull, eV/atom", [known], _NUM_BINS)
    return {
        **histogram,
        "source": judged.energies.source,
        "count": len(known),
        "metastable": METASTABLE,
    }


def _map(judged: JudgedSet) -> dict[str, Any] | None:
    """Both sets on the plane of the first two principal components of all their latents."""
    latents = judged.latents
    if latents is None or not len(latents.generated) or not len(latents.reference):
        return None
    plane = principal_components(np.concatenate([latents.reference, latents.generated]))
    parts = np.split(plane.points, [len(latents.reference)])
    sets = (
        ("reference", judged.known, latents.reference_indices, parts[0]),
        ("generated", judged.items, latents.generated_indices, parts[1]),
    )
    return {
        "axes": plane.axes,
        "sets": [
            {
                "name": name,
                "x": points[:, 0].tolist(),
                "y": points[:, 1].tolist(),
                "ids": [items[i].id for i in indices],
                "formulas": [
                    full_formula(items[i].structure.composition).replace(" ", "") for i in indices
                ],
            }
            for name, items, indices, points in sets
        ],
    }


def _settings(metrics: dict[str, Any]) -> MatcherSettings:
    return MatcherSettings(**metrics["tolerances"])
