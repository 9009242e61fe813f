"""Download known data sets: `python scripts/download_data.py mp_20 [perov_5 ... | all]`.

Each data set is verified and placed in a folder of the same name. Existing files are not downloaded
again, and interrupted downloads are resumed.
"""

import argparse
import logging
import sys
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.table import Column, Table

from src.data.known_sets import KNOWN_SETS
from src.data.readers import DataError


def main(argv: list[str] | None = None) -> int:
    """Download each set, print a summary, and return the exit code."""
    summary, details = __doc__.split("\n\n")
    parser = argparse.ArgumentParser(description=summary, epilog=details)
    parser.add_argument(
        "sets",
        nargs="+",
        choices=[*KNOWN_SETS, "all"],
        metavar="SET",
        help=f"{', '.join(KNOWN_SETS)}, or all",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path("data"),
        help="folder in which to create one folder per data set (default: data)",
    )
    parser.add_argument(
        "--base-url",
        metavar="ADDRESS",
        help="mirror to download from: http://, https://, file:// or a folder, with one folder per "
        "data set (default: the original sources)",
    )
    args = parser.parse_args(argv)
    from src.data.sources import download

    console = Console()
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", force=True,
        handlers=[RichHandler(console=console, show_time=False, show_path=False)],
    )  # fmt: skip
    table = Table("set", "downloaded", "published crystals", Column("folder", overflow="fold"))
    code = 0
    names = KNOWN_SETS if "all" in args.sets else dict.fromkeys(args.sets)
    for name in names:
        try:
            fetched = ", ".join(download(name, args.data_dir / name, args.base_url))
            fetched = fetched or "already there"
        except (DataError, OSError) as error:
            print(error, file=sys.stderr)
            fetched, code = "[red]failed[/]", 1
        except KeyboardInterrupt:
            print("Stopped. Run the same command again to resume.", file=sys.stderr)
            return 130  # the shell's exit code for SIGINT
        crystals = [f"{n:,} {split}" for split, n in KNOWN_SETS[name].crystals.items()]
        table.add_row(name, fetched, ", ".join(crystals), str(args.data_dir / name))
    console.print(table)
    return code


if __name__ == "__main__":
    sys.exit(main())
