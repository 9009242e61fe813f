"""The command that continues a run."""

import shlex
import sys
from pathlib import Path


def how_to_continue(folder: str | Path) -> str:
    """How to continue the run in a folder: the command, if Hydra started this run."""
    from hydra.core.hydra_config import HydraConfig

    folder = Path(folder)
    if not HydraConfig.initialized():
        return f"to continue: resume_from=last with the run folder {folder}"
    hydra = HydraConfig.get()
    if Path(hydra.runtime.output_dir).absolute() != folder.absolute():  # a trial of a search
        return "the same command continues the search"
    given = [
        override
        for override in hydra.overrides.task
        if not override.lstrip("+").startswith(("resume_from=", "ckpt_path="))
    ]
    script = sys.argv[0]
    program = ["python", script] if script.endswith(".py") else [Path(script).name]
    last = ["resume_from=last", f"hydra.run.dir={folder}"]
    return f"to continue: {shlex.join([*program, *given, *last])}"
