"""Make the included data set: AFLOW prototypes decorated with other elements.

Each crystal is made in four steps:

1. Take a parent: one of the AFLOW prototypes in pymatgen, as a Niggli-reduced primitive cell with
   at most 20 atoms.
2. Replace each element by a similar one, from the same column of the periodic table or at most
   `MAX_SCALE_DISTANCE` away on Pettifor's chemical scale (Solid State Commun. 51, 31, 1984;
   pymatgen's `mendeleev_no`). If the parent is charge neutral with common oxidation states, the
   child must be neutral too.
3. Scale the cell: V = V_parent * DLS(child) / DLS(parent), with volumes predicted by pymatgen's
   DLSVolumePredictor. The ratio cancels the prediction error for the parent.
4. Keep the crystal if it `is_plausible` and matches no kept crystal with the same formula.

The parents take turns, so that each contributes about the same number of crystals. A parent that
yields no more new crystals drops out. A random permutation then assigns the crystals to the splits.

The same pymatgen version and seed give the same bytes. For the options, run
`python scripts/make_prototypes.py --help`.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.analysis.structure_prediction.volume_predictor import DLSVolumePredictor
from pymatgen.core import Composition, Element, Structure
from rich.console import Console
from rich.progress import track
from rich.table import Table

MAX_NUM_ATOMS = 20
MAX_SCALE_DISTANCE = 6
MAX_DRAWS = 300  # per turn; a parent that finds no new crystal in these draws drops out
MAX_DLS_ERROR = 1.6  # factor; beyond it, a parent is molecular or has overlapping atoms
MAX_VOLUME_RATIO = 2.0  # child to parent or inverse; DLS considers only the tightest bond
MAX_ASPECT = 6.0  # longest to shortest lattice vector
VOLUME_PER_ATOM = (5.0, 80.0)  # Å^3
MIN_DISTANCE = 0.9  # Å
MIN_RADII_FRACTION = 0.6  # smallest distance, as a fraction of the sum of the atomic radii

UNWANTED = {"He", "Ne", "Ar", "Kr", "Xe", "Tc", "Pm"}  # inert, or without a stable isotope
ELEMENTS = [
    element
    for element in map(Element.from_Z, [*range(1, 84), 90, 92, 94])  # H to Bi; Th, U, Pu
    if element.symbol not in UNWANTED
]
DLS = DLSVolumePredictor(min_scaling=None, max_scaling=None)
# The tolerances of the usual reconstruction metric: what matches there is a duplicate here.
MATCHER = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
OXIDATION_STATES = {e.symbol: e.common_oxidation_states or () for e in ELEMENTS}
OXIDATION_STATES["C"] = (-4, 4)  # pymatgen allows -4 to 4, with which C balances anything


def are_similar(old: Element, new: Element) -> bool:
    """Whether one element may replace the other; H does not count as an alkali metal."""
    same_column = old.group == new.group and Element.H not in (old, new)
    return same_column or abs(old.mendeleev_no - new.mendeleev_no) <= MAX_SCALE_DISTANCE


SIMILAR = {
    old.symbol: [new.symbol for new in ELEMENTS if are_similar(old, new)] for old in ELEMENTS
}


class Parent(NamedTuple):
    prototype: str  # AFLOW label
    structure: Structure  # Niggli-reduced primitive cell
    dls_volume: float  # predicted volume of the cell, Å^3


def load_parents() -> list[Parent]:
    """The prototypes that are small enough and whose volume DLS predicts well enough."""
    parents = []
    for entry in AFLOW_PROTOTYPE_LIBRARY:
        structure = entry["snl"].structure.get_primitive_structure().get_reduced_structure("niggli")
        if len(structure) > MAX_NUM_ATOMS or not set(structure.composition) <= set(ELEMENTS):
            continue
        dls_volume = DLS.predict(structure)
        if 1 / MAX_DLS_ERROR < dls_volume / structure.volume < MAX_DLS_ERROR:
            parents.append(Parent(entry["tags"]["aflow"], structure, dls_volume))
    return parents


def is_balanced(composition: Composition) -> bool:
    """Whether the compound can be neutral with one common oxidation state per element."""
    amounts = composition.get_el_amt_dict()
    states = product(*(OXIDATION_STATES[symbol] for symbol in amounts))
    return len(amounts) > 1 and any(np.dot(charges, [*amounts.values()]) == 0 for charges in states)


def is_plausible(structure: Structure) -> bool:
    """Whether cell shape, density and all interatomic distances are within sensible bounds."""
    lengths = structure.lattice.lengths
    if max(lengths) > MAX_ASPECT * min(lengths):
        return False
    if not VOLUME_PER_ATOM[0] < structure.volume / len(structure) < VOLUME_PER_ATOM[1]:
        return False
    radii = np.array([site.specie.atomic_radius for site in structure])
    first, second, _, distances = structure.get_neighbor_list(2 * radii.max() + MIN_DISTANCE)
    closest = np.maximum(MIN_DISTANCE, MIN_RADII_FRACTION * (radii[first] + radii[second]))
    return bool(np.all(distances > closest))


def are_equal(first: Structure, second: Structure) -> bool:
    """Whether the two match in either order, since with such wide tolerances the order matters."""
    return MATCHER.fit(first, second) or MATCHER.fit(second, first)


def decorate(parent: Parent, rng: np.random.Generator) -> Structure | None:
    """Draw one child of a parent; None if the result is not a sensible crystal."""
    structure = parent.structure
    new = {old: SIMILAR[old][rng.integers(len(SIMILAR[old]))] for old in structure.symbol_set}
    if len(set(new.values())) < len(new):
        return None
    species = [new[site.specie.symbol] for site in structure]
    child = Structure(structure.lattice, species, structure.frac_coords)
    if is_balanced(structure.composition) and not is_balanced(child.composition):
        return None
    ratio = DLS.predict(child) / parent.dls_volume
    if not 1 / MAX_VOLUME_RATIO < ratio < MAX_VOLUME_RATIO:
        return None
    child.scale_lattice(ratio * structure.volume)
    return child if is_plausible(child) else None


def generate(rng: np.random.Generator) -> Iterator[tuple[str, Structure]]:
    """Yield distinct (prototype, structure) pairs until no parent yields new ones."""
    parents = load_parents()
    known: defaultdict[str, list[tuple[str, Structure]]] = defaultdict(list)  # by formula

    def is_new(prototype: str, child: Structure) -> bool:
        others = known[child.composition.reduced_formula]
        return not any(prototype == label or are_equal(child, other) for label, other in others)

    while parents:
        turns = [parents[index] for index in rng.permutation(len(parents))]
        for parent in turns:
            for _ in range(MAX_DRAWS):
                child = decorate(parent, rng)
                if child is not None and is_new(parent.prototype, child):
                    known[child.composition.reduced_formula].append((parent.prototype, child))
                    yield parent.prototype, child
                    break
            else:
                parents.remove(parent)


def to_cif(structure: Structure) -> str:
    """The structure as CIF in P1, with 4 decimals for lengths and angles and 6 for coordinates.

    The sites are sorted by electronegativity, as in pymatgen's reader and writer.
    """
    structure = structure.get_sorted_structure()
    cell = [
        f"_cell_{name} {value:.4f}"
        for name, value in zip(
            ["length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"],
            structure.lattice.parameters,
            strict=True,
        )
    ]
    # rounding can turn 0.9999999 into 1, so wrap again
    frac_coords = np.round(structure.frac_coords % 1, 6) % 1
    sites = [
        f"{site.specie}{index} {site.specie} {x:.6f} {y:.6f} {z:.6f}"
        for index, (site, (x, y, z)) in enumerate(zip(structure, frac_coords, strict=True))
    ]
    columns = ["label", "type_symbol", "fract_x", "fract_y", "fract_z"]
    return "\n".join(
        [
            f"data_{structure.composition.reduced_formula}",
            "_symmetry_space_group_name_H-M 'P 1'",
            "loop_",
            "_symmetry_equiv_pos_as_xyz",
            "'x, y, z'",
            *cell,
            "loop_",
            *(f"_atom_site_{column}" for column in columns),
            *sites,
            "",
        ]
    )


def to_row(prototype: str, structure: Structure) -> dict[str, str | float]:
    """One row of the CSV file."""
    formula = structure.composition.reduced_formula
    return {
        "material_id": f"{prototype}-{formula}",
        "prototype": prototype,
        "formula": formula,
        "volume_per_atom": round(structure.volume / len(structure), 3),
        "cif": to_cif(structure),
    }


def summarize(splits: dict[str, list[tuple[str, Structure]]]) -> Table:
    """A table that summarizes the splits."""
    table = Table("split", "crystals", "prototypes", "elements", "atoms per crystal (min mean max)")
    for name, crystals in splits.items():
        num_atoms = [len(structure) for _, structure in crystals]
        elements = {element for _, structure in crystals for element in structure.composition}
        table.add_row(
            name,
            str(len(crystals)),
            str(len({prototype for prototype, _ in crystals})),
            str(len(elements)),
            f"{min(num_atoms)} {np.mean(num_atoms):.1f} {max(num_atoms)}",
        )
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("data/prototypes"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=5000, help="crystals in train.csv")
    parser.add_argument("--val", type=int, default=500, help="crystals in val.csv")
    parser.add_argument("--test", type=int, default=500, help="crystals in test.csv")
    args = parser.parse_args(argv)
    console = Console()

    sizes = {"train": args.train, "val": args.val, "test": args.test}
    if min(sizes.values()) < 1:
        parser.error("every split needs at least one crystal")
    total = sum(sizes.values())
    rng = np.random.default_rng(args.seed)
    turns = zip(range(total), generate(rng), strict=False)
    crystals = [c for _, c in track(turns, "Decorating", total=total, console=console)]
    if len(crystals) < total:
        parser.error(f"the parents yield only {len(crystals)} of the {total} requested crystals")

    order = iter(rng.permutation(total))
    splits = {name: [crystals[next(order)] for _ in range(n)] for name, n in sizes.items()}
    args.output.mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        partial = args.output / f"{name}.csv.partial"
        table = pd.DataFrame([to_row(*crystal) for crystal in split])
        table.to_csv(partial, index=False, lineterminator="\n")
        partial.replace(args.output / f"{name}.csv")
    console.print(summarize(splits))


if __name__ == "__main__":
    main()
