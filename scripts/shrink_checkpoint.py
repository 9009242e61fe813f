"""Make a checkpoint small enough to share: `python scripts/shrink_checkpoint.py CKPT OUT.ckpt`.

Leaves out what only a run that resumes needs, and rounds matrices to half precision. The model
computes in float32 as before.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from src.utils.threads import limit_spinning  # noqa: E402

limit_spinning()  # before torch is loaded

import torch  # noqa: E402

from src.utils.checkpoints import load_checkpoint  # noqa: E402
from src.utils.errors import UserError, exit_on_user_error  # noqa: E402
from src.utils.output import new_file  # noqa: E402

KEPT = (
    "hyper_parameters", "pytorch-lightning_version", "training_set", "read_options", "guide_learns"
)  # fmt: skip


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Write the file and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="a .ckpt of a VAE or latent diffusion model")
    parser.add_argument("output", type=Path, help="file to write, which ends in .ckpt")
    parser.add_argument("--exact", nargs="*", default=[], help="parts to keep exact, such as vae")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    args = parser.parse_args(argv)
    if args.output.suffix != ".ckpt":
        raise UserError(f"{args.output} must end in .ckpt")
    small = shrink(load_checkpoint(args.checkpoint), args.exact)
    with new_file(args.output, args.overwrite) as path:
        torch.save(small, path)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")


def shrink(content: dict[str, Any], exact: Sequence[str] = ()) -> dict[str, Any]:
    """What is needed to use a model, with its matrices in half precision.

    Args:
        content: of a checkpoint.
        exact: the first parts of the names of weights that are not rounded.

    Raises:
        UserError: if no weight has such a name.
    """
    weights = content["state_dict"]
    for part in exact:
        if not any(name.startswith(f"{part}.") for name in weights):
            raise UserError(f"--exact {part}: the checkpoint has no such part")
    rounded = {
        name: weight.half()
        if weight.ndim > 1 and weight.is_floating_point() and name.split(".")[0] not in exact
        else weight
        for name, weight in weights.items()
    }
    kept = {name: content[name] for name in KEPT if name in content}
    return {"state_dict": rounded, **kept}


if __name__ == "__main__":
    main()
