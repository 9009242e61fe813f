"""Make the table and the picture of a sweep: `python scripts/collect_sweep.py FOLDER`.

A multirun and a search do that themselves when they end; this is for one that has not ended, and
for the folders that an array on a cluster leaves.
"""

import argparse
import sys
from pathlib import Path

from src.commands.sweep import SweepError, report_sweep


def main(argv: list[str] | None = None) -> int:
    """Write sweep.csv and sweep.png into the folder, print the table, return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder that the jobs' folders lie in")
    parser.add_argument(
        "--objective", default="crmse", help="figure of summary.json to draw (default: crmse)"
    )
    args = parser.parse_args(argv)
    try:
        report_sweep(args.folder, args.objective)
    except SweepError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
