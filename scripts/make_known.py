"""Make a small file of known crystals: `python scripts/make_known.py data/mp_20 OUT.csv.gz`.

The file is a table of CIFs like those of any data set, with rounded numbers. Beside a checkpoint,
as `known.csv.gz`, it lets the page of generated crystals show the nearest known crystal.
"""

import argparse
import gzip
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from ase.data import chemical_symbols

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from src.utils.threads import limit_spinning  # noqa: E402

limit_spinning()  # before torch is loaded

from src.data.cif import Crystal  # noqa: E402
from src.data.crystal import lengths_and_cosines  # noqa: E402
from src.data.split_files import find_split  # noqa: E402
from src.data.structures import iter_structures, to_crystal  # noqa: E402
from src.data.structures.read import Skipped  # noqa: E402
from src.utils.errors import UserError, exit_on_user_error  # noqa: E402
from src.utils.output import new_file  # noqa: E402

CELL = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
SITES = ("type_symbol", "fract_x", "fract_y", "fract_z")


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Write the file and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of a data set, or a file of crystals")
    parser.add_argument("output", type=Path, help="file to write, which ends in .csv.gz")
    parser.add_argument("--split", default="train", help="which crystals of a data set")
    parser.add_argument("--decimals", type=int, default=4, help="of fractional coordinates")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    args = parser.parse_args(argv)
    if not args.output.name.endswith(".csv.gz"):
        raise UserError(f"{args.output} must end in .csv.gz")
    rows = list(_rows(find_split(args.data, args.split) or args.data, args.decimals))
    text = pd.DataFrame(rows, columns=["material_id", "cif"]).to_csv(index=False)
    with new_file(args.output, args.overwrite) as path:  # without a time, so the same every time
        path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    print(f"{args.output}: {len(rows):,} crystals, {args.output.stat().st_size / 1e6:.2f} MB")


def _rows(source: Path, decimals: int) -> Iterator[tuple[str, str]]:
    for item in iter_structures(source):
        if not isinstance(item, Skipped):
            yield item.id, short_cif(to_crystal(item.structure), decimals)


def short_cif(crystal: Crystal, decimals: int) -> str:
    """A CIF with no more than a reader needs.

    Args:
        decimals: of fractional coordinates; lengths in Å and angles in degrees have three.
    """
    lengths, cosines = lengths_and_cosines(crystal.lattice)
    values = [*lengths, *np.degrees(np.arccos(np.clip(cosines, -1, 1)))]
    lines = [
        "data_",
        *(f"_cell_{name} {value:.3f}" for name, value in zip(CELL, values, strict=True)),
    ]
    lines += ["loop_", *(f"_atom_site_{name}" for name in SITES)]
    for number, coords in zip(crystal.atom_types.tolist(), crystal.frac_coords, strict=True):
        lines.append(" ".join([chemical_symbols[number], *(f"{x:.{decimals}f}" for x in coords)]))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
