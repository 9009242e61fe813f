"""Compare priors by what they generate: `python scripts/ablation_ldm.py latents --minutes 30`.

A list of variants is a file in scripts/ablations/ldm. A variant may have overrides for the VAE
(`vae`), for the prior (`ldm`) and arguments of sampling (`sample`). For each variant and seed, a
VAE and a prior are trained, with the same budgets, and the prior generates crystals. Variants share
the runs in which they do not differ. Existing runs are not repeated: run the same command again to
continue after an interruption, or with more seeds to extend the table.

Forces need the extra `stability`.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ablations.runs import ROOT, limit_minutes, mean_and_range, train
from rich.console import Console
from rich.table import Table

from src.utils.strict_json import json_text
from src.utils.threads import limit_spinning

limit_spinning()  # before torch is loaded

LISTS = ROOT / "scripts" / "ablations" / "ldm"

QUIET = ["callbacks.pictures.every_n_epochs=0"]
OF_VAE = [*QUIET, "callbacks.match_rate.every_n_epochs=0", "eval.num_crystals=1000"]
OF_LDM = [*QUIET, "eval.num_samples=0"]

COLUMNS = {  # heading: key in the figures of a variant, and format
    "VAE: match": ("vae_match_rate", "{:.1%}"),
    "RMSE": ("vae_rmse", "{:.4f}"),
    "valid": ("valid_structure", "{:.1%}"),
    "compositions": ("valid_composition", "{:.1%}"),
    "both": ("valid", "{:.1%}"),
    "unique": ("unique", "{:.1%}"),
    "novel": ("novel", "{:.1%}"),
    "W density": ("wdist_density", "{:.2f}"),
    "W elements": ("wdist_num_elements", "{:.2f}"),
    "force 10 %": ("force_0.1", "{:.2f}"),
    "25 %": ("force_0.25", "{:.2f}"),
    "50 %": ("force_0.5", "{:.1f}"),
    "val loss": ("best_val_loss", "{:.3f}"),
    "epochs": ("epochs", "{:.0f}"),
}


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Train, sample, print the table, and return one row for each variant and seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    lists = {path.stem: path for path in LISTS.glob("*.yaml")}
    parser.add_argument("name", choices=sorted(lists), help="name of the list of variants")
    parser.add_argument("--data", default="mp_20", help="experiments of which data set")
    parser.add_argument("--vae", help="checkpoint to use instead of training VAEs")
    parser.add_argument("--vae-minutes", type=float, default=10, help="per VAE")
    parser.add_argument("--minutes", type=float, default=20, help="per prior")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run for each")
    parser.add_argument("--variants", nargs="+", help="variants to run; all by default")
    parser.add_argument("--num", type=int, default=500, help="crystals to generate")
    parser.add_argument("--folder", type=Path, help="for the runs; logs/ablations/NAME by default")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("overrides", nargs="*", help="after the name, for both models")
    args = parser.parse_args(argv)

    variants = yaml.safe_load(lists[args.name].read_text())
    if unknown := set(args.variants or ()) - set(variants):
        parser.error(f"{args.name} has no variants {sorted(unknown)}; it has {list(variants)}")
    folder = (args.folder or ROOT / "logs" / "ablations" / f"ldm_{args.name}").absolute()
    runs: dict[tuple[str, ...], Path] = {}  # by overrides
    rows = []
    for seed in args.seeds:
        for name in args.variants or variants:
            given = variants[name]
            vae, run = args.vae, None
            if vae is None:
                wanted = [f"experiment={args.data}/vae_dng_small", f"seed={seed}", *OF_VAE]
                wanted += [*limit_minutes(args.vae_minutes), *given.get("vae", []), *args.overrides]
                run = train_once("train_vae", wanted, folder / "vae" / name / str(seed), runs)
                vae = run / "checkpoints" / "best.ckpt"
            wanted = [f"experiment={args.data}/ldm_dng_small", f"seed={seed}", *OF_LDM]
            wanted += [*limit_minutes(args.minutes), *given.get("ldm", []), *args.overrides]
            wanted += [f"vae_ckpt_path={vae}"]
            prior = train_once("train_ldm", wanted, folder / name / str(seed), runs)
            figures = generate(prior, given.get("sample", {}), args.num)
            rows.append({"variant": name, "seed": seed, **figures, **of_vae(run)})
    Console(width=180).print(table(rows, f"{args.name}, {args.data}: {' '.join(args.overrides)}"))
    if args.json:
        args.json.write_text(json_text(rows, indent=1) + "\n")
    return rows


def train_once(
    command: str, overrides: Sequence[str], run: Path, runs: dict[tuple[str, ...], Path]
) -> Path:
    """Train, unless a variant before had the same overrides, and return the folder of the run."""
    run = runs.setdefault((command, *overrides), run)
    train(command, run, overrides, threads=1)
    return run


def of_vae(run: Path | None) -> dict[str, Any]:
    """How well the VAE reconstructs."""
    if run is None:
        return {"vae_match_rate": None, "vae_rmse": None}
    summary = json.loads((run / "summary.json").read_text())
    return {"vae_match_rate": summary["match_rate"], "vae_rmse": summary["rmse"]}


def generate(run: Path, how: Mapping[str, Any], num: int) -> dict[str, Any]:
    """Figures of crystals that the best checkpoint of a run generates."""
    name = "_".join(["figures", str(num), *(f"{key}_{value}" for key, value in how.items())])
    file = run / f"{name}.json"
    if not file.is_file():
        file.write_text(json_text(_generate(run, how, num), indent=1))
    summary = json.loads((run / "summary.json").read_text())
    return {
        **json.loads(file.read_text()),
        **{key: summary[key] for key in ("best_val_loss", "epochs", "steps", "num_parameters")},
    }


def _generate(run: Path, how: Mapping[str, Any], num: int) -> dict[str, Any]:
    # imported here to keep `--help` fast
    import torch
    from omegaconf import OmegaConf

    from src.commands.trained_model import load_data
    from src.ldm_module import LDMModule
    from src.ldm_module.evaluation import de_novo
    from src.ldm_module.sampling import generate_crystals
    from src.metrics.generation.stability import largest_forces, quantiles
    from src.metrics.generation.validity import invalid_reason

    checkpoint = run / "checkpoints" / "best.ckpt"
    ldm = LDMModule.load_from_checkpoint(checkpoint)
    data = load_data(OmegaConf.create({"ckpt_path": str(checkpoint), "data": {}}), ldm.vae)
    known, held_out = (
        dataset.batch(torch.arange(len(dataset))).to_structure()
        for dataset in (data.dataset("train"), data.dataset("val"))
    )
    how = {"attempts": 1, **how}  # so that the model itself is judged
    crystals = [c for batch in generate_crystals(ldm, num, **how) for c in batch.to_structure()]
    valid = [crystal for crystal in crystals if invalid_reason(crystal) is None]
    forces = quantiles(largest_forces(valid))
    return {
        **de_novo(crystals, known, held_out),
        **{f"force_{quantile}": value for quantile, value in forces.items()},
    }


def table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """One row per variant: the mean over seeds, ± half the range if there are several seeds."""
    shown = Table(title=title, title_justify="left", caption="forces in eV/Å, density in g/cm³")
    shown.add_column("variant")
    for heading in COLUMNS:
        shown.add_column(heading, justify="right")
    for name in dict.fromkeys(row["variant"] for row in rows):
        cells = []
        for key, form in COLUMNS.values():
            values = [row[key] for row in rows if row["variant"] == name and row[key] is not None]
            if not values:
                cells.append("")
                continue
            cells.append(mean_and_range(values, form, key != "epochs"))
        shown.add_row(name, *cells)
    return shown


if __name__ == "__main__":
    main()
