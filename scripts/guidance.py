"""How well a model meets what it is asked for: `python scripts/guidance.py CKPT DATA`.

Asks for the density, the volume per atom or the number of elements of real crystals, as far as the
model was trained with these conditions, and compares with what comes out, at several strengths of
guidance. At 0, conditions are ignored: these are the unconditioned samples. Noise and numbers of
atoms, which are those of the real crystals, are the same for all. Errors are over samples with a
valid structure.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from src.utils.threads import limit_spinning  # noqa: E402

limit_spinning()  # before torch is loaded

import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

from src.commands.references import find_reference, read_crystals  # noqa: E402
from src.commands.trained_model import load_shared  # noqa: E402
from src.data.schema import CrystalBatch  # noqa: E402
from src.ldm_module import LDMModule  # noqa: E402
from src.ldm_module.conditions import COMPUTED  # noqa: E402
from src.metrics.generation.validity import invalid_reason  # noqa: E402
from src.utils.errors import UserError, exit_on_user_error  # noqa: E402
from src.utils.inference import inference  # noqa: E402
from src.utils.output import new_file  # noqa: E402
from src.utils.strict_json import write_json  # noqa: E402

UNITS = {"density": "g/cm³", "volume_per_atom": "Å³", "num_elements": ""}
BATCH_SIZE = 256


@dataclass(frozen=True, slots=True)
class Row:
    """One property at one strength of guidance.

    Attributes:
        mean_error: mean absolute difference from the value asked for; None if no sample is valid.
        valid_structure: share of the samples.
    """

    property: str
    guidance: float
    mean_error: float | None
    valid_structure: float


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Print the table and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="latent diffusion model: checkpoint, folder or hub name")
    parser.add_argument("data", help="folder or file of the crystals whose values are asked for")
    parser.add_argument("--split", default="test", help="which crystals of a data set")
    parser.add_argument("--num", type=int, default=500, help="crystals")
    parser.add_argument("--guidance", type=float, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=50, help="sampling steps")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--picture", type=Path, default=Path("guidance.png"))
    args = parser.parse_args(argv)
    if args.num < 1:
        raise UserError(f"--num must be at least 1, not {args.num}")
    ldm = load_shared(LDMModule, args.checkpoint, "src/train_ldm.py")
    named = find_reference(args.data, args.split, "--split").crystals(read_crystals)
    order = torch.randperm(len(named), generator=torch.Generator().manual_seed(0)).tolist()
    crystals = CrystalBatch.from_structures([named[i].structure for i in order[: args.num]])
    rows = measure(ldm, crystals, args.guidance, args.steps)
    _print(rows)
    with new_file(args.picture, overwrite=True) as path:
        draw(rows).savefig(path, dpi=150)
    found = [asdict(row) for row in rows]
    if args.json:
        write_json(args.json, found)
    return found


def measure(
    ldm: LDMModule, crystals: CrystalBatch, guidance: Sequence[float], sampling_steps: int
) -> list[Row]:
    """Ask for what the crystals have, one property at a time.

    Args:
        ldm: the model.
        crystals: give the values, the numbers of atoms and, if the model cannot make them up, the
            types.
        guidance: values of `cfg_scale`, see `LDMModule.sample`.
        sampling_steps: see `LDMModule.sample`.

    Raises:
        UserError: if the model cannot be asked for any property that follows from a crystal.
    """
    properties = [name for name in ldm.condition_names if name in COMPUTED]
    if not properties:
        raise UserError(
            f"the model knows none of the conditions {', '.join(COMPUTED)}: train one with "
            f"ldm_module.conditions.properties=[{','.join(COMPUTED)}]"
        )
    turns = [(name, scale) for name in properties for scale in guidance]
    return [
        _ask(ldm, crystals, name, scale, sampling_steps)
        for name, scale in track(turns, "Sampling", transient=True)
    ]


def _ask(
    ldm: LDMModule, crystals: CrystalBatch, name: str, scale: float, sampling_steps: int
) -> Row:
    generator = torch.Generator(ldm.device).manual_seed(0)
    asked = COMPUTED[name](crystals)
    errors, count = [], 0
    atoms = crystals.atom_types.split(crystals.num_atoms.tolist())
    with inference(ldm):
        for part in torch.arange(len(asked)).split(BATCH_SIZE):
            given = torch.cat([atoms[i] for i in part.tolist()])
            types = None if ldm.atom_type_predict else given
            request = CrystalBatch.for_sampling(crystals.num_atoms[part], types)
            made = ldm.sample(
                request, sampling_steps, scale, {name: asked[part].tolist()},
                generator=generator, attempts=1,
            )  # fmt: skip
            assert isinstance(made, CrystalBatch)
            made = made.to("cpu")
            is_valid = [invalid_reason(crystal) is None for crystal in made.to_structure()]
            offsets = (COMPUTED[name](made) - asked[part]).abs()
            errors += offsets[torch.tensor(is_valid)].tolist()
            count += len(part)
    mean = sum(errors) / len(errors) if errors else None
    return Row(name, scale, mean, len(errors) / count)


def _print(rows: Sequence[Row]) -> None:
    table = Table(title="Mean error of the value asked for, over valid structures")
    for name in ("property", "guidance", "mean error", "of unconditioned", "valid structures"):
        table.add_column(name, justify="left" if name == "property" else "right")
    free = {row.property: row.mean_error for row in rows if row.guidance == 0}
    for row in rows:
        error, base = row.mean_error, free.get(row.property)
        unit = UNITS[row.property]
        cells = [
            "none" if error is None else f"{error:.3f} {unit}".strip(),
            "" if error is None or not base else f"{error / base:.0%}",
        ]
        table.add_row(row.property, f"{row.guidance:g}", *cells, f"{row.valid_structure:.1%}")
    Console().print(table)


def draw(rows: Sequence[Row]) -> Figure:
    """The errors, one panel for each property, and below them the share of valid structures."""
    properties = list(dict.fromkeys(row.property for row in rows))
    figure = Figure(figsize=(3.4 * len(properties) + 0.4, 4.4), layout="constrained")
    axes = figure.subplots(2, len(properties), sharex=True, squeeze=False, height_ratios=[2, 1])
    for (above, below), name in zip(axes.T, properties, strict=True):
        mine = sorted((row for row in rows if row.property == name), key=lambda row: row.guidance)
        scales = [row.guidance for row in mine]
        errors = [float("nan") if row.mean_error is None else row.mean_error for row in mine]
        above.plot(scales, errors, "o-", color="#3577c1")
        if scales[0] == 0:
            above.axhline(errors[0], color="0.6", linestyle="--", linewidth=1)
            above.annotate("unconditioned", (scales[-1], errors[0]), (0, -4), va="top", ha="right",
                           textcoords="offset points", color="0.4", fontsize=8)  # fmt: skip
        label = f"{name.replace('num_', 'number of ').replace('_', ' ')}, {UNITS[name]}".strip(", ")
        above.set(title=label, ylim=(0, None), ylabel="mean error")
        below.plot(scales, [100 * row.valid_structure for row in mine], "o-", color="0.4")
        below.set(xlabel="guidance", ylabel="valid, %", ylim=(0, 105))
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        for ax in (above, below):
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(alpha=0.25, linewidth=0.6)
    return figure


if __name__ == "__main__":
    main()
