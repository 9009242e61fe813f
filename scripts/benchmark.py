"""Benchmarks: `python scripts/benchmark.py {data,large,prepare,train,...} [--json FILE]`.

Each figure is a median of several runs in which the variants take turns, so that a busy machine
slows all of them alike: trust the ratios.
"""

import argparse
import logging
import platform
import sys
import warnings
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from src.utils.threads import wait_passively  # noqa: E402

wait_passively()  # before torch is loaded

import torch  # noqa: E402

from src.utils.strict_json import json_text  # noqa: E402


def main(argv: list[str] | None = None) -> list[dict]:
    """Run one benchmark, print its table, and write its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bench", choices=["data", "large", "prepare", "train", "infer",
                                          "match", "scale", "busy"])  # fmt: skip
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data" / "prototypes")
    parser.add_argument("--preset", choices=["tiny", "small", "mp20"], default="small")
    parser.add_argument("--batch-size", type=int, help="256; of `busy` 64")
    parser.add_argument("--size", choices=["small", "medium", "full"], default="small",
                        help="of the model of `busy`, as it ships")  # fmt: skip
    parser.add_argument("--beside", type=int, default=1, help="busy processes, of `busy`")
    parser.add_argument("--crystals", type=int, default=1024, help="in an epoch of the benchmark")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--picture", type=Path, default=Path("scale.png"), help="of `scale`")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    rows = [asdict(row) for row in _run(args)]
    _print(rows)
    if args.json:
        args.json.write_text(json_text(rows, indent=1) + "\n")
    return rows


def _run(args: argparse.Namespace) -> list:
    # Imported here, so that `--help` answers at once.
    from benchmarks import busy, data, infer, large, match, prepare, scale, train

    from src.data import DataModule

    if args.bench == "large":
        return large.run(args.crystals, args.rounds)
    if args.bench in ("data", "prepare"):
        path = next(p for p in args.data_dir.glob("train.csv*"))
        if args.bench == "prepare":
            return prepare.run(path, args.crystals)
        return data.run(path, args.rounds)
    module = DataModule(args.data_dir)
    if args.bench == "match":
        return match.run(module.dataset("test"), args.rounds)
    if args.bench == "scale":
        return scale.run(args.preset, args.rounds, args.picture)
    dataset = module.dataset("train")
    # at random, since files are often sorted in some way
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    dataset = dataset.subset(order[: args.crystals])
    if args.bench == "busy":
        return busy.run(dataset, args.size, args.batch_size or 64, args.rounds, args.beside)
    bench = infer if args.bench == "infer" else train
    return bench.run(dataset, args.preset, args.batch_size or 256, args.rounds)


def _print(rows: list[dict]) -> None:
    console = Console()
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    console.print(f"torch {torch.__version__}, {where or platform.machine()}, "
                  f"{torch.get_num_threads()} threads")  # fmt: skip
    for bench, group in groupby(rows, key=lambda row: row["bench"]):
        table = Table(title=bench, title_justify="left")
        table.add_column("variant")
        table.add_column("value", justify="right")
        table.add_column("unit")
        table.add_column("ratio", justify="right")
        for row in group:
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
            table.add_row(row["variant"], f"{row['value']:,.4g}", row["unit"], ratio)
        console.print(table)


if __name__ == "__main__":
    main()
