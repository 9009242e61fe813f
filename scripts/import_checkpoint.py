"""Turn a Chemeleon2 checkpoint into one of ours: `python scripts/import_checkpoint.py PATH OUT`.

Nothing in the file is executed.
"""

import argparse
import sys
from pathlib import Path

from src.utils.threads import wait_passively

wait_passively()  # before torch is loaded

from src.utils.checkpoints import CheckpointError, save_checkpoint  # noqa: E402
from src.vae_module.import_chemeleon2 import import_chemeleon2  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Import, say what it is, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="the checkpoint of Chemeleon2")
    parser.add_argument("out", type=Path, help="the checkpoint to write")
    args = parser.parse_args(argv)
    if args.out.exists():
        print(f"{args.out} exists: name another file, or remove it", file=sys.stderr)
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
