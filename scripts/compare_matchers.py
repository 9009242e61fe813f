"""Compare our structure matcher with pymatgen's on any number of pairs.

    python scripts/compare_matchers.py --pairs 20000 --out compare

compares this number of pairs, from all families in turn. Call it again with a larger number to
continue. A pair depends only on the seed, its family and its number. Each pair is compared four
times, with NumPy's arrays and with Numba's loops: `get_rms_dist` with CDVAE's tolerances, with and
without reduction to primitive cells, in one order, and with either in the other order; and `fit`
with pymatgen's default tolerances.

With `--once`, each pair is compared in one of these four ways, in turn: more pairs in the same
time.

`--out` is the folder for `counts.json`, and for `disagreements.jsonl` with a line for each match or
rms (to 1e-6) that differs. For these pairs, pymatgen is run again on the same crystals with
coordinates that differ by about 1e-12, half of the times with the atoms in another order: if its
result varies, the order of the atoms or rounding is the cause. To measure how often these change
its result at all, the same is done for some pairs of each family (`asked again`, `order`,
`rounding`).
"""

import argparse
import json
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from rich.console import Console
from rich.table import Table

from src.utils.strict_json import json_text
from src.utils.threads import limit_spinning

limit_spinning()  # before torch is loaded

from src.metrics import PreparedCrystals, match  # noqa: E402
from src.metrics.matching import CDVAE, PYMATGEN, UNREDUCED, MatcherSettings  # noqa: E402
from src.metrics.structure_matching.reduction import Cell  # noqa: E402
from src.metrics.structure_matching.search import Tolerances, has_numba, search  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
CHUNK = 50
AGREEMENT = 1e-6
STABILITY = 4  # pairs of a chunk

Pair = tuple[Structure, Structure]
Family = Callable[[np.random.Generator], Pair]


class Families:
    """Ways to make a pair from random numbers; each public method is one family.

    Args:
        data: Folder with mp_20, perov_5, carbon_24 and mpts_52.
    """

    def __init__(self, data: Path) -> None:
        self.data = data
        self.names = [name for name in vars(Families) if not name.startswith("_")]

    def mp_20(self, rng: np.random.Generator) -> Pair:
        """A crystal and a simulated reconstruction; also in the next three methods."""
        return self._reconstruction("mp_20", rng)

    def perov_5(self, rng: np.random.Generator) -> Pair:
        return self._reconstruction("perov_5", rng)

    def carbon_24(self, rng: np.random.Generator) -> Pair:
        return self._reconstruction("carbon_24", rng)

    def mpts_52(self, rng: np.random.Generator) -> Pair:
        return self._reconstruction("mpts_52", rng)

    def carbon_pairs(self, rng: np.random.Generator) -> Pair:
        """Two Carbon-24 crystals with the same number of atoms."""
        texts = _by_number_of_atoms(self.data / "carbon_24")
        group = texts[rng.choice(list(texts))]
        return _read(rng.choice(group)), _read(rng.choice(group))

    def polymorphs(self, rng: np.random.Generator) -> Pair:
        """Two MP-20 crystals with the same formula, as compared for novelty."""
        groups = _polymorphs(self.data / "mp_20")
        first, second = rng.choice(groups[rng.integers(len(groups))], 2, replace=False)
        return _read(first), _read(second)

    def prototypes(self, rng: np.random.Generator) -> Pair:
        """Two prototypes with the same numbers of atoms, on the same elements."""
        groups = _same_numbers(ROOT / "data" / "prototypes")
        first, second = map(_read, rng.choice(groups[rng.integers(len(groups))], 2))
        # the elements of the first, each in place of one of which there are as many
        species: dict[Any, Any] = {}
        for count in set(second.composition.get_el_amt_dict().values()):
            ours, theirs = (
                sorted(k for k, v in s.composition.get_el_amt_dict().items() if v == count)
                for s in (first, second)
            )
            species.update(zip(theirs, rng.permutation(ours).tolist(), strict=True))
        second.replace_species(species)
        return first, _shaken(second, rng, rng.choice([0, 0.02]))

    def supercells(self, rng: np.random.Generator) -> Pair:
        """A crystal and a supercell of up to four cells, displaced or not."""
        crystal = self._crystal(rng, most=12)
        matrix = np.diag(rng.permutation([1, 1, int(rng.integers(2, 5))]))
        matrix[0, 1] = rng.integers(-1, 2)
        supercell = crystal.copy().make_supercell(matrix)
        if rng.random() < 0.5:
            crystal = _shaken(crystal.copy().make_supercell(matrix), rng, 0.05 * rng.random())
        return crystal, _shaken(supercell, rng, rng.choice([0, 0.01, 0.05]))

    def chiral(self, rng: np.random.Generator) -> Pair:
        """A crystal without symmetry and its mirror image."""
        crystal = _shaken(self._crystal(rng, most=16), rng, 0.3)
        mirror = Structure(crystal.lattice, crystal.species, -crystal.frac_coords)
        return crystal, _shaken(mirror, rng, rng.choice([0, 0.03]))

    def single(self, rng: np.random.Generator) -> Pair:
        """Two crystals of one atom, in more or less similar cells."""
        lengths, angles = rng.uniform(2.5, 5, 3), rng.choice([60.0, 90.0, 109.47, 75.0], 3)
        if rng.random() < 0.7:
            lengths[:], angles[:] = lengths[0], angles[0]
        cells = []
        for noise in rng.choice([0, 1e-4, 0.05, 0.15], 2):
            while True:
                parameters = [
                    *(lengths * np.exp(noise * rng.standard_normal(3))),
                    *(angles + 60 * noise * rng.standard_normal(3)),
                ]
                with np.errstate(all="ignore"):
                    cell = Lattice.from_parameters(*parameters)
                if cell.volume > 0.2 * np.prod(cell.lengths):
                    break
                angles = np.full(3, 90.0)
            cells.append(Structure(cell, ["Fe"], rng.random((1, 3))))
        return cells[0], cells[1]

    def skewed(self, rng: np.random.Generator) -> Pair:
        """A crystal, and the same crystal in a skewed cell, slightly distorted."""
        crystal = self._crystal(rng, most=20)
        matrix = np.eye(3, dtype=int)
        for _ in range(int(rng.integers(1, 4))):
            i, j = rng.choice(3, 2, replace=False)
            matrix[i] += int(rng.choice([-2, -1, 1, 2])) * matrix[j]
        skewed = Structure(
            matrix @ crystal.lattice.matrix,
            crystal.species,
            crystal.cart_coords,
            coords_are_cartesian=True,
        )
        return crystal, _shaken(skewed, rng, rng.choice([0, 1e-4, 0.05]))

    def nearly_symmetric(self, rng: np.random.Generator) -> Pair:
        """Cells that are cubic or hexagonal up to 1e-7 to 1e-2, a range around the tolerances."""
        crystal = self._crystal(rng, most=8)
        a = (crystal.volume) ** (1 / 3)
        cell = (
            Lattice.cubic(a)
            if rng.random() < 0.5
            else Lattice.hexagonal(a, a * rng.uniform(0.8, 2))
        )
        pair = []
        for _ in range(2):
            distortion = 10 ** rng.uniform(-7, -2) * rng.standard_normal((3, 3))
            matrix = cell.matrix + distortion * a
            pair.append(Structure(matrix, crystal.species, crystal.frac_coords))
        return pair[0], _shaken(pair[1], rng, rng.choice([0, 0.02]))

    def exact(self, rng: np.random.Generator) -> Pair:
        """A crystal and a shifted copy of it, with its atoms in another order."""
        crystal = self._crystal(rng, most=30)
        moved = crystal.copy()
        moved.translate_sites(range(len(moved)), rng.choice([0, 0.5, rng.random()]) * np.ones(3))
        return crystal, _shuffled(moved, rng)

    def _crystal(self, rng: np.random.Generator, most: int) -> Structure:
        while True:
            name = rng.choice(["mp_20", "perov_5", "carbon_24", "mpts_52"])
            crystal = _read(rng.choice(_texts(self.data / name)))
            if len(crystal) <= most:
                return crystal

    def _reconstruction(self, name: str, rng: np.random.Generator) -> Pair:
        crystal = _read(rng.choice(_texts(self.data / name)))
        prediction = _shaken(
            crystal, rng, rng.choice([0, 0.01, 0.05, 0.1, 0.2, 0.4]) * rng.random()
        )
        return (_shuffled(prediction, rng) if rng.random() < 0.5 else prediction), crystal


def _shaken(crystal: Structure, rng: np.random.Generator, noise: float) -> Structure:
    """Displaced by `noise` times (V/N)^(1/3) in each direction, the cell strained by a fifth."""
    if not noise:
        return crystal
    matrix = crystal.lattice.matrix * np.exp(0.2 * noise * rng.standard_normal((3, 1)))
    matrix = matrix @ (np.eye(3) + 0.2 * noise * rng.standard_normal((3, 3)))
    step = noise * (crystal.volume / len(crystal)) ** (1 / 3)
    shaken = Structure(matrix, crystal.species, crystal.frac_coords)
    coords = shaken.cart_coords + step * rng.standard_normal((len(crystal), 3))
    return Structure(matrix, crystal.species, coords, coords_are_cartesian=True)


def _shuffled(crystal: Structure, rng: np.random.Generator) -> Structure:
    return Structure.from_sites([crystal[i] for i in rng.permutation(len(crystal))])


@lru_cache(maxsize=4096)
def _parse(text: str) -> Structure:
    return Structure.from_str(text, fmt="cif")


def _read(text: str) -> Structure:
    return _parse(str(text)).copy()


@cache
def _texts(folder: Path) -> np.ndarray:
    (path,) = folder.glob("test.csv*")
    return pd.read_csv(path)["cif"].to_numpy(dtype=object)


@cache
def _by_number_of_atoms(folder: Path) -> dict[int, list[str]]:
    groups: dict[int, list[str]] = {}
    for text in _texts(folder):
        groups.setdefault(len(_parse(text)), []).append(text)
    return {count: group for count, group in groups.items() if len(group) > 1}


@cache
def _polymorphs(folder: Path) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.csv*")):
        for text in pd.read_csv(path)["cif"]:
            formula = next(
                line
                for line in text.splitlines()
                if line.startswith("_chemical_formula_structural")
            )
            groups.setdefault(formula, []).append(text)
    return [group for group in groups.values() if len(group) > 1]


@cache
def _same_numbers(folder: Path) -> list[list[str]]:
    groups: dict[tuple, list[str]] = {}
    for text in _texts(folder):
        amounts = _parse(text).composition.get_el_amt_dict().values()
        groups.setdefault(tuple(sorted(amounts)), []).append(text)
    return [group for group in groups.values() if len(group) > 1]


def pymatgen_rms(pair: Pair, settings: MatcherSettings) -> float | None:
    """Without pymatgen's cache, which treats crystals that differ by less than 1e-5 Å as one."""
    StructureMatcher._get_reduced_istructure.cache_clear()
    matcher = StructureMatcher(**asdict(settings), primitive_cell=settings.primitive_cell)
    found = matcher.get_rms_dist(*pair)
    return None if found is None else float(found[0])


def pymatgen_fit(pair: Pair, settings: MatcherSettings) -> float | None:
    """The result of `fit` as a number: 1 if the crystals match."""
    StructureMatcher._get_reduced_istructure.cache_clear()
    matcher = StructureMatcher(**asdict(settings), primitive_cell=settings.primitive_cell)
    return 1.0 if matcher.fit(*pair) else None


def our_fits(pairs: list[Pair], settings: MatcherSettings, compiled: bool) -> list[float | None]:
    first, second = (PreparedCrystals([pair[k] for pair in pairs]) for k in (0, 1))
    cells = [
        (a, b)
        for a, b in zip(
            first.cells(range(len(pairs)), settings.primitive_cell),
            second.cells(range(len(pairs)), settings.primitive_cell),
            strict=True,
        )
        if isinstance(a, Cell) and isinstance(b, Cell)
    ]
    found = search(cells, Tolerances(**asdict(settings)), goal="fit", compiled=compiled)
    return [1.0 if outcome.matched else None for outcome in found]


def agree(ours: float | None, theirs: float | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return abs(ours - theirs) <= AGREEMENT


def compare_chunk(
    pairs: list[Pair], numbers: list[int], clock: dict[str, float], once: bool = False
) -> list[dict]:
    """The disagreements in a chunk of pairs; with `once`, in one of the four tasks."""
    found = []
    swapped = [(b, a) for a, b in pairs]
    chunk = numbers[0] // CHUNK
    parity = chunk // (4 if once else 1) % 2
    tasks = [
        ("primitive", pairs, CDVAE, pymatgen_rms),
        ("unreduced", pairs, UNREDUCED, pymatgen_rms),
        ("swapped", swapped, (CDVAE, UNREDUCED)[parity], pymatgen_rms),
        ("fit", pairs, PYMATGEN, pymatgen_fit),
    ]
    for task, these, settings, oracle in tasks[chunk % 4 : chunk % 4 + 1] if once else tasks:
        start = time.process_time()
        theirs = [oracle(pair, settings) for pair in these]
        clock["pymatgen"] += time.process_time() - start
        clock["matched"] += sum(other is not None for other in theirs)
        for pair, other in list(zip(these, theirs, strict=True))[:STABILITY]:
            clock["asked again"] += 1
            shuffled, rounded = variants(pair, settings, oracle, 2)
            clock["order"] += not agree(shuffled, other) and agree(rounded, other)
            clock["rounding"] += not agree(rounded, other)
        for means in ("NumPy", "Numba") if has_numba() else ("NumPy",):
            start = time.process_time()
            if task == "fit":
                ours = our_fits(these, settings, means == "Numba")
            else:
                first, second = [a for a, _ in these], [b for _, b in these]
                results = match(first, second, settings, compiled=means == "Numba")
                ours = [result.rms for result in results]
            clock[means] += time.process_time() - start
            clock["compared"] += len(these)
            for number, pair, mine, other in zip(numbers, these, ours, theirs, strict=True):
                if agree(mine, other):
                    continue
                varied = variants(pair, settings, oracle)
                rounding = any(not agree(value, other) for value in varied[1::2])
                order = any(not agree(value, other) for value in varied[::2])
                reached = any(agree(value, mine) for value in varied)
                found.append(
                    {
                        "number": number,
                        "task": task,
                        "means": means,
                        "formula": pair[0].formula,
                        "ours": mine,
                        "pymatgen": other,
                        "pymatgen on variants": varied,
                        "cause": "rounding" if rounding else "order" if order else "unexplained",
                        "ours among variants": reached,
                    }
                )
    return found


def variants(
    pair: Pair, settings: MatcherSettings, oracle: Callable, count: int = 8
) -> list[float | None]:
    """The results of pymatgen for the same pair, changed only by rounding and order."""
    rng = np.random.default_rng(0)
    results: list[float | None] = []
    for _ in range(count):
        moved = []
        for crystal in pair:
            noise = 1e-12 * rng.standard_normal((len(crystal), 3))
            strain = np.eye(3) + 1e-13 * rng.standard_normal((3, 3))
            matrix = crystal.lattice.matrix @ strain
            varied = Structure(matrix, crystal.species, crystal.frac_coords + noise)
            moved.append(varied if len(results) % 2 else _shuffled(varied, rng))
        results.append(oracle(tuple(moved), settings))
    return results


def main(argv: list[str] | None = None) -> None:
    """Compare, count, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1000, help="of all families together")
    parser.add_argument("--families", nargs="+", help="some only; all by default")
    parser.add_argument("--data-dir", type=Path, default=ROOT.parent / "shared" / "data",
                        help="with mp_20, perov_5, carbon_24 and mpts_52")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="for other pairs, with another --out")
    parser.add_argument("--once", action="store_true", help="compare each pair in one way only")
    parser.add_argument("--out", type=Path, default=Path("compare_matchers"))
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    families = Families(args.data_dir)
    names = args.families or families.names
    if unknown := set(names) - set(families.names):
        parser.error(f"no family is called {', '.join(unknown)}; there are {families.names}")
    args.out.mkdir(parents=True, exist_ok=True)
    state_path = args.out / "counts.json"
    state = json.loads(state_path.read_text()) if state_path.exists() else {}
    wanted = -(-args.pairs // len(names))
    while True:
        counts = {name: int(state.get(name, {}).get("pairs", 0)) for name in names}
        name = min(counts, key=lambda key: counts[key])
        if counts[name] >= wanted:
            break
        numbers = list(range(counts[name], counts[name] + CHUNK))
        pairs = [
            getattr(families, name)(
                np.random.default_rng([args.seed, families.names.index(name), number])
            )
            for number in numbers
        ]
        clock: dict[str, float] = defaultdict(float, state.get(name, {}))
        found = compare_chunk(pairs, numbers, clock, args.once)
        clock["pairs"] += CHUNK
        clock["disagreements"] += len(found)
        clock["unexplained"] += sum(item["cause"] == "unexplained" for item in found)
        with (args.out / "disagreements.jsonl").open("a") as lines:
            lines.writelines(
                json_text({"family": name, **item}, indent=None) + "\n" for item in found
            )
        state[name] = dict(clock)
        state_path.write_text(json_text(state) + "\n")
    _print(state)


def _print(state: dict[str, dict[str, float]]) -> None:
    columns = [
        "pairs",
        "compared",
        "matched",
        "disagreements",
        "unexplained",
        "asked again",
        "order",
        "rounding",
    ]
    table = Table(title="comparisons, disagreements, and how often pymatgen's own answer varies")
    table.add_column("family")
    for column in (*columns, "NumPy x", "Numba x"):
        table.add_column(column, justify="right")
    total: Counter = Counter()
    for counts in state.values():
        total.update(counts)
    for name, counts in {**state, "all": dict(total)}.items():
        ratios = [
            f"{counts['pymatgen'] / counts[means]:.1f}" if means in counts else ""
            for means in ("NumPy", "Numba")
        ]
        table.add_row(name, *(f"{counts[column]:,.0f}" for column in columns), *ratios)
    Console().print(table)


if __name__ == "__main__":
    main()
