"""Run a benchmark: `python scripts/benchmark.py {data,large,prepare,train,...} [--json FILE]`.

Each value is the median of several rounds. The variants alternate within a round, so that a busy
machine slows all of them alike: the ratios are more reliable than the absolute values.
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

from src.utils.threads import limit_spinning  # noqa: E402

limit_spinning()  # before torch is loaded

import torch  # noqa: E402

from src.utils.strict_json import json_text  # noqa: E402


def main(argv: list[str] | None = None) -> list[dict]:
    """Run one benchmark, print its tables, optionally write its rows, and return them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bench", choices=["data", "large", "prepare", "train", "infer",
                                          "match", "judge", "sample", "scale", "busy"])  # fmt: skip
    parser.add_argument(
        "--data-dir", type=Path, default=ROOT / "data" / "prototypes", help="folder of the crystals"
    )
    parser.add_argument("--preset", choices=["tiny", "one-core", "small", "mp20"],
                        default="small", help="size of the model")  # fmt: skip
    parser.add_argument("--batch-size", type=int, help="256, or 64 for `busy` and one-core")
    parser.add_argument("--size", choices=["small", "medium", "full"], default="small",
                        help="size of the model for `busy`, as in the configs")  # fmt: skip
    parser.add_argument("--beside", type=int, default=1, help="other busy processes, for `busy`")
    parser.add_argument("--crystals", type=int, default=1024, help="crystals to use")
    parser.add_argument("--rounds", type=int, default=5, help="to take the median of")
    parser.add_argument("--tables", nargs="+", help="some of `match` only: pairs, noise, ...")
    parser.add_argument("--checkpoint", type=Path, help="model for `sample`; default: random")
    parser.add_argument("--files", type=int, default=0, help="crystals `sample` writes to files")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--picture", type=Path, default=Path("scale.png"), help="plot of `scale`")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    rows = [asdict(row) for row in _run(args)]
    _print(rows)
    if args.json:
        args.json.write_text(json_text(rows, indent=1) + "\n")
    return rows


def _run(args: argparse.Namespace) -> list:
    # imported here to keep `--help` fast
    from benchmarks import busy, data, infer, judge, large, match, prepare, sample, scale, train

    from src.data import DataModule
    from src.data.split_files import find_split

    if args.bench == "large":
        return large.run(args.crystals, args.rounds)
    if args.bench in ("data", "prepare"):
        path = find_split(args.data_dir, "train")
        if path is None:
            raise SystemExit(f"{args.data_dir} contains no train.csv")
        if args.bench == "prepare":
            return prepare.run(path, args.crystals)
        return data.run(path, args.rounds)
    module = DataModule(args.data_dir)
    if args.bench == "match":
        tables = args.tables or match.TABLES
        if unknown := set(tables) - set(match.TABLES):
            raise SystemExit(f"{unknown} are not among the tables {match.TABLES}")
        return match.run(module.dataset("train"), args.crystals, args.rounds, tables)
    if args.bench == "judge":
        return judge.run(module.dataset("train"), args.crystals, args.rounds)
    if args.bench == "scale":
        return scale.run(args.preset, args.rounds, args.picture)
    dataset = module.dataset("train")
    # shuffle, because files are often sorted
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    dataset = dataset.subset(order[: args.crystals])
    if args.bench == "busy":
        return busy.run(dataset, args.size, args.batch_size or 64, args.rounds, args.beside)
    if args.bench == "sample":
        size = args.batch_size or 256
        return sample.run(dataset, args.checkpoint, args.crystals, size, args.rounds, args.files)
    bench = infer if args.bench == "infer" else train
    default = 64 if args.preset == "one-core" else 256
    return bench.run(dataset, args.preset, args.batch_size or default, args.rounds)


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
