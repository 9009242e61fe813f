"""Draw the first generated crystals in a row: `python scripts/draw_samples.py SAMPLES OUT.png`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from src.utils.threads import limit_spinning  # noqa: E402

limit_spinning()  # before torch is loaded

from src.data.structures import read_structures  # noqa: E402
from src.report.pictures import draw_strip  # noqa: E402
from src.utils.errors import UserError, exit_on_user_error  # noqa: E402
from src.utils.output import new_file  # noqa: E402


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("samples", type=Path, help="folder of samples, or any file of crystals")
    parser.add_argument("output", type=Path, help="picture to write, which ends in .png")
    parser.add_argument("--num", type=int, default=8, help="crystals, from the first")
    args = parser.parse_args(argv)
    if args.output.suffix != ".png" or args.num < 1:
        raise UserError(f"{args.output} must end in .png, and --num={args.num} be at least 1")
    source = args.samples / "samples.extxyz"
    named, _ = read_structures(source if source.is_file() else args.samples)
    figure = draw_strip([item.structure for item in named[: args.num]])
    with new_file(args.output, overwrite=True) as partial:
        figure.savefig(partial, dpi=100, format="png")


if __name__ == "__main__":
    main()
