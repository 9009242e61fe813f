"""Make the table and plot of a sweep: `python scripts/collect_sweep.py FOLDER`.

Multiruns and searches do this themselves when they finish. Use this script for a sweep that has not
finished, and for the runs of a job array on a cluster.
"""

import argparse
import sys
from pathlib import Path

from src.commands.sweep import SweepError, report_sweep


def main(argv: list[str] | None = None) -> int:
    """Write sweep.csv and sweep.png to the folder, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder that contains the folders of the jobs")
    parser.add_argument(
        "--objective", default="crmse", help="metric in summary.json to plot (default: crmse)"
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
