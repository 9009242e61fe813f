"""Compare our structure matcher with pymatgen's on any number of pairs.

    python scripts/compare_matchers.py --pairs 20000 --out compare

compares this number of pairs, from all families in turn (`matcher_pairs.py`; some need `--vae` or
`--samples`). Call it again with a larger number to continue. A pair depends only on the seed, its
family and its number. Each pair is compared four times, with NumPy's arrays and with Numba's loops:
`get_rms_dist` with CDVAE's tolerances, with and without reduction to primitive cells, in one order,
and with either in the other order; and `fit` with pymatgen's default tolerances.

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
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from src.utils.strict_json import json_text  # noqa: E402
from src.utils.threads import limit_spinning  # noqa: E402

limit_spinning()  # before torch is loaded

from matcher_pairs import Families, Pair, shuffled  # noqa: E402

from src.metrics import PreparedCrystals, match  # noqa: E402
from src.metrics.matching import CDVAE, PYMATGEN, UNREDUCED, MatcherSettings  # noqa: E402
from src.metrics.structure_matching.reduction import Cell  # noqa: E402
from src.metrics.structure_matching.search import Tolerances, has_numba, search  # noqa: E402

CHUNK = 50
AGREEMENT = 1e-6
STABILITY = 4  # pairs of a chunk


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
            moved.append(varied if len(results) % 2 else shuffled(varied, rng))
        results.append(oracle(tuple(moved), settings))
    return results


def main(argv: list[str] | None = None) -> None:
    """Compare, count, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1000, help="of all families together")
    parser.add_argument("--families", nargs="+", help="some only; all by default")
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data",
                        help="with mp_20, perov_5, carbon_24 and mpts_52")  # fmt: skip
    parser.add_argument("--vae", type=Path, metavar="CHECKPOINT",
                        help="of a VAE: adds its reconstructions under noise")  # fmt: skip
    parser.add_argument("--samples", type=Path, metavar="FOLDER",
                        help="that sample_ldm.py wrote: adds generated crystals")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="for other pairs, with another --out")
    parser.add_argument("--once", action="store_true", help="compare each pair in one way only")
    parser.add_argument("--out", type=Path, default=Path("compare_matchers"))
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    families = Families(args.data_dir, args.vae, args.samples)
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
        pairs = [families.pair(name, args.seed, number) for number in numbers]
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
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
