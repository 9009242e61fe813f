"""Compare variants of a config with equal budgets: `python scripts/ablation.py NAME --epochs 20`.

A list of variants is a file in scripts/ablations that maps the name of each variant to the
overrides that it adds to the experiment. Every variant is trained once per seed. Seeds are the
outer loop, so that a busy machine slows all variants alike. Existing runs are not repeated: run the
same command again to continue after an interruption, or with more seeds to extend the table.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from ablations.runs import ROOT, limit_minutes, mean_and_range, train
from rich.console import Console
from rich.table import Table

from src.utils.processes import num_cpus
from src.utils.strict_json import json_text
from src.utils.threads import limit_spinning

limit_spinning()  # before torch is loaded

LISTS = ROOT / "scripts" / "ablations"
NOISE = (0.0, 0.1, 0.2)  # levels of latent noise, in standard deviations of each channel

# skip what takes time; the evaluation below covers all variants in the same way
ALL_RUNS = [
    "callbacks.match_rate.every_n_epochs=0",
    "callbacks.pictures.every_n_epochs=0",
    "eval.num_crystals=1",
]

COLUMNS = {  # heading: key in the metrics of a run, and format
    "match": ("match_rate", "{:.2%}"),
    "RMSE": ("rmse", "{:.4f}"),
    "match, pymatgen": ("match_rate_default", "{:.2%}"),
    "sampled": ("match_rate_sampled", "{:.2%}"),
    "noise 0.1": ("match_rate_noise_0.1", "{:.2%}"),
    "noise 0.2": ("match_rate_noise_0.2", "{:.2%}"),
    "reordered": ("match_rate_reordered", "{:.2%}"),
    "types": ("atom_type_accuracy", "{:.2%}"),
    "lengths, Å": ("lengths_mae", "{:.3f}"),
    "KL, nats": ("kl", "{:.1f}"),
    "steps": ("steps", "{:,.0f}"),
    "time, s": ("training_steps_s", "{:,.0f}"),
}


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Train and evaluate the variants, print the table, and return one row per run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    lists = read_lists()
    parser.add_argument("name", choices=sorted(lists), help="name of the list of variants")
    parser.add_argument("--experiment", default="prototypes/vae_dng", help="config to start from")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--steps", type=int, help="per run")
    budget.add_argument("--epochs", type=int, help="per run")
    budget.add_argument("--minutes", type=float, help="per run, including validation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run for each")
    parser.add_argument("--variants", nargs="+", help="variants to run; all by default")
    parser.add_argument("--split", default="val", help="split to evaluate on")
    parser.add_argument(
        "--crystals",
        type=int,
        default=500,
        help="how many to evaluate, from the start of the split",
    )
    parser.add_argument("--folder", type=Path, help="for the runs; logs/ablations/NAME by default")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the CPUs")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--picture", type=Path, help="plot match rate with noise over cRMSE (PNG)")
    parser.add_argument("overrides", nargs="*", help="after the name, e.g. data.batch_size=64")
    args = parser.parse_args(argv)

    variants = lists[args.name]
    if unknown := set(args.variants or ()) - set(variants):
        parser.error(f"{args.name} has no variants {sorted(unknown)}; it has {list(variants)}")
    variants = {name: variants[name] for name in args.variants or variants}
    folder = (args.folder or ROOT / "logs" / "ablations" / args.name).absolute()
    shared = [f"experiment={args.experiment}", *limit(args), *ALL_RUNS, *args.overrides]
    runs = {
        (name, seed): (folder / name / str(seed), [*shared, *overrides, f"seed={seed}"])
        for seed in args.seeds
        for name, overrides in variants.items()
    }
    threads = max(1, num_cpus() // args.jobs)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda run: train("train_vae", run[0], run[1], threads), runs.values()))
    rows = [
        {"variant": name, "seed": seed, **evaluate(run, args.split, args.crystals)}
        for (name, seed), (run, _) in runs.items()
    ]
    Console(width=160).print(table(rows, f"{args.name}: {' '.join(shared)}"))
    if args.json:
        args.json.write_text(json_text(rows, indent=1) + "\n")
    if args.picture:
        draw(rows, args.picture)
    return rows


def read_lists() -> dict[str, dict[str, list[str]]]:
    """The overrides of each variant, by list and variant name."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in LISTS.glob("*.yaml")}


def limit(args: argparse.Namespace) -> list[str]:
    """The budget as overrides. The learning-rate schedule ends with any of these limits."""
    if args.steps:
        return [f"trainer.max_steps={args.steps}", "trainer.max_epochs=-1"]
    if args.epochs:
        return [f"trainer.max_epochs={args.epochs}"]
    return limit_minutes(args.minutes)


def evaluate(run: Path, split: str, num_crystals: int) -> dict[str, Any]:
    """Metrics of the best checkpoint of a run on the first crystals of a split."""
    file = run / f"figures_{split}_{num_crystals}.json"
    if not file.is_file():
        file.write_text(json_text(_evaluate(run, split, num_crystals), indent=1))
    return json.loads(file.read_text())


def _evaluate(run: Path, split: str, num_crystals: int) -> dict[str, Any]:
    # imported here to keep `--help` fast
    import torch
    from omegaconf import OmegaConf

    from src.commands.evaluate import evaluate_vae
    from src.commands.trained_model import load_data
    from src.metrics.matching import open_matcher
    from src.vae_module import VAEModule

    checkpoint = run / "checkpoints" / "best.ckpt"
    data = load_data(OmegaConf.create({"ckpt_path": str(checkpoint), "data": {}}))
    dataset = data.dataset(split)
    dataset = dataset.subset(torch.arange(min(num_crystals, len(dataset))))
    vae = VAEModule.load_from_checkpoint(checkpoint)
    with open_matcher() as matcher:
        metrics = evaluate_vae(
            vae,
            dataset,
            matcher,
            noise_levels=NOISE,
            num_probed=None,
            transformations=["permutation"],
            progress=True,
        ).metrics
    summary = json.loads((run / "summary.json").read_text())
    kept = ("match_rate", "rmse", "crmse", "match_rate_default", "rmse_default",
            "atom_type_accuracy", "coords_rmsd", "lengths_mae", "angles_mae")  # fmt: skip
    return {
        **{key: metrics[key] for key in kept},
        "match_rate_sampled": metrics["sampled"]["match_rate"],
        **{
            f"match_rate_noise_{level:g}": rate
            for level, rate in zip(NOISE, metrics["noise"]["match_rate"], strict=True)
        },
        "match_rate_reordered": metrics["symmetry"]["permutation"]["match_rate"],
        "kl": sum(metrics["latent"]["kl_per_channel"]),
        "active_units": metrics["latent"]["active_units"],
        **{key: summary[key] for key in ("steps", "epochs", "training_steps_s", "num_parameters")},
    }


def table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """One row per variant: the mean over seeds, ± half the range if there are several seeds."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("variant")
    for heading in COLUMNS:
        shown.add_column(heading, justify="right")
    for name in dict.fromkeys(row["variant"] for row in rows):
        cells = []
        for key, form in COLUMNS.values():
            of_name = [row[key] for row in rows if row["variant"] == name]
            values = [math.nan if value is None else value for value in of_name]
            cells.append(mean_and_range(values, form, key not in ("steps", "training_steps_s")))
        shown.add_row(name, *cells)
    return shown


def draw(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Plot robustness to latent noise over the error without noise; each point is a run."""
    from matplotlib.figure import Figure  # imported here to keep `--help` fast

    levels = [level for level in NOISE if level]
    figure = Figure(figsize=(4.5 * len(levels), 4), layout="constrained")
    names = list(dict.fromkeys(row["variant"] for row in rows))
    for ax, level in zip(figure.subplots(1, len(levels), squeeze=False)[0], levels, strict=True):
        for k, name in enumerate(names):
            of_name = [row for row in rows if row["variant"] == name]
            x = [row["crmse"] for row in of_name]
            y = [100 * row[f"match_rate_noise_{level:g}"] for row in of_name]
            ax.plot(x, y, "oDsv^P"[k % 6], color=f"C{k % 10}", label=name)
        ax.set(xscale="log", xlabel="cRMSE without noise", title=f"latent noise of {level:g} std")
        ax.set_ylim(min(80, ax.get_ylim()[0]), 101)
        ax.grid(alpha=0.3)
    figure.axes[0].set_ylabel("match rate with latent noise, %")
    figure.legend(handles=figure.axes[0].get_lines(), loc="outside right upper", frameon=False)
    figure.savefig(file, dpi=130)


if __name__ == "__main__":
    main()
