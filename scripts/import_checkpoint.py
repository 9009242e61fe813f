"""Convert a Chemeleon2 checkpoint: `python scripts/import_checkpoint.py PATH OUT`.

No code in the Chemeleon2 checkpoint is executed.
"""

import argparse
import sys
from pathlib import Path

from src.utils.threads import limit_spinning

limit_spinning()  # before torch is loaded

from src.utils.checkpoints import CheckpointError, save_checkpoint  # noqa: E402
from src.vae_module.import_chemeleon2 import import_chemeleon2  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Convert the checkpoint, print what it contains, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="Chemeleon2 checkpoint")
    parser.add_argument("out", type=Path, help="checkpoint file to write")
    args = parser.parse_args(argv)
    if args.out.exists():
        print(f"{args.out} already exists: choose another file, or remove it", file=sys.stderr)
        return 1
    try:
        vae = import_chemeleon2(args.path)
        save_checkpoint(vae, args.out)
    except (CheckpointError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    mode = "DNG" if vae.atom_type_predict else "CSP"
    print(
        f"{args.out}: {mode}, latent_dim {vae.latent_dim}, encoder {vae.encoder.num_layers} x "
        f"{vae.encoder.d_model}, decoder {vae.decoder.num_layers} x {vae.decoder.d_model}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
