"""The evaluation of a checkpoint: what it reconstructs, and what its latents are like."""

import dataclasses
import json
import logging
import math
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pandas as pd
import torch
from ase import Atoms
from omegaconf import DictConfig
from pymatgen.core import Element, Structure
from rich.console import Console
from rich.table import Table
from safetensors.torch import save
from torch import Tensor

from src.commands import load_data, load_vae, run_folder
from src.data.dataset import CrystalDataset
from src.data.schema import CrystalBatch
from src.encoding import encode_dataset
from src.metrics.evaluate import SETTINGS, match_batches, reconstruction_figures, to_structures
from src.metrics.latents import latent_statistics, noise_area, pool_atoms
from src.metrics.matching import CDVAE, MatcherPool, PairResult, summarize
from src.metrics.reconstruction import ReconstructionErrors
from src.metrics.symmetry import MOTIONS, SYMPREC, SpaceGroup, space_group
from src.metrics.validity import is_valid_composition, is_valid_structure
from src.report import write_report
from src.utils.geometry import transform, wrapped_difference
from src.utils.inference import inference
from src.utils.output import new_folder
from src.vae_module import VAEModule

log = logging.getLogger(__name__)

MAX_METRE_PAIRS = 20
MOTION_WORDS = {
    "translation": "origin",
    "rotation": "orientation",
    "permutation": "order of the atoms",
    "cell": "choice of cell",
}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `evaluate_vae` found.

    Attributes:
        metrics: figures, as `evaluate_vae` says.
        crystals: a row for each crystal, in the order of the data set.
        originals, reconstructions: the crystals, in that order. The numbers of a reconstruction
            need make no structure: its row has the reason.
        pooled: (B, latent_dim) mean of the posterior means of each crystal's atoms.
    """

    metrics: dict[str, Any]
    crystals: pd.DataFrame
    originals: CrystalBatch
    reconstructions: CrystalBatch
    pooled: Tensor


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate a checkpoint as `configs/eval_vae.yaml` says, and write what was found.

    The folder `cfg.output_dir` (`eval_SPLIT` beside the checkpoint's folder, unless given) has
    `metrics.json`, `per_crystal.csv`, `original.extxyz`, `reconstruction.extxyz`,
    `latents.safetensors` (`pooled`), `training.csv` where the run's curves were found, and
    `report.html` with `figures/`.

    Returns:
        The content of `metrics.json`.

    Raises:
        ValueError: for a checkpoint, data or a folder that cannot be used; the message says why.
        FileNotFoundError: for a checkpoint that is not there.
    """
    checkpoint = Path(cfg.ckpt_path)
    vae = load_vae(cfg)
    if cfg.num_crystals is not None and cfg.num_crystals < 1:
        raise ValueError(f"num_crystals is at least 1 (null: all), not {cfg.num_crystals}")
    run_dir = run_folder(checkpoint)
    output_dir = Path(cfg.output_dir or run_dir / f"eval_{cfg.split}")
    with new_folder(output_dir, marker="metrics.json", overwrite=cfg.overwrite) as folder:
        datamodule = load_data(cfg)
        dataset = datamodule.dataset(cfg.split)
        if cfg.num_crystals is not None:
            dataset = dataset.subset(torch.arange(min(cfg.num_crystals, len(dataset))))
        with MatcherPool(cfg.num_workers, timeout=cfg.timeout) as pool:
            evaluation = evaluate_vae(
                vae,
                dataset,
                pool,
                batch_size=datamodule.eval_batch_size,
                noise_levels=tuple(cfg.noise_levels),
                num_probed=cfg.num_probed,
                seed=cfg.seed,
                progress=True,
            )
        source = {
            "checkpoint": str(checkpoint),
            "data_dir": str(datamodule.data_dir),
            "split": cfg.split,
            "seed": cfg.seed,
        }
        metrics = _json_ready({**evaluation.metrics, **source})
        write_evaluation(dataclasses.replace(evaluation, metrics=metrics), folder)
        if (run_dir / "metrics.csv").is_file():
            shutil.copy(run_dir / "metrics.csv", folder / "training.csv")
        if cfg.report:
            write_report(folder)
    Console().print(evaluation_table(metrics))
    log.info("The evaluation is in %s", output_dir)
    return metrics


def evaluate_vae(
    vae: VAEModule,
    dataset: CrystalDataset,
    pool: MatcherPool,
    batch_size: int = 256,
    noise_levels: Sequence[float] = (0, 0.05, 0.1, 0.2, 0.5, 1.0),
    num_probed: int | None = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Reconstruct crystals and look at the latents that they come back from.

    `metrics` of the result has, decoded from the posterior's mean:

    - `match_rate`, `rmse` (of matched pairs), `crmse` (a pair that does not match is charged
      `stol`: arXiv:2509.12178) and `metre` (a crystal also counts if it matches the reconstruction
      of another one) with CDVAE's matcher settings; the same with `_default` at the end for
      pymatgen's; `match_timeouts`, counted as failures;
    - `atom_type_accuracy`, `frac_coords_rmse`, `coords_rmsd` (Å), `lengths_mae` (Å), `angles_mae`
      (degrees), `volume_mape`; `crystals_evaluated`;
    - `sampled`: the same, decoded from one draw of the posterior;
    - `gated`: match rates where a match counts only if the reconstruction is valid in geometry
      and composition (see `src.metrics.validity`), and the shares of reconstructions and of
      originals that are (SMACT refuses about a tenth of real crystals);
    - `space_group`: share of crystals whose group, at `symprec` Å, is `kept` (the same number),
      `lost` (the reconstruction has fewer operations), `gained` (more) or `changed` (as many), of
      those in which spglib finds one;
    - `by_num_atoms`: a list of rows; `by_element`: by symbol, the share of its atoms whose type is
      right, and the match rate of crystals that hold it;
    - `latent`: see `latent_statistics`;
    - `noise`: match rates by `levels`, the standard deviation of noise added to the latent in
      units of each channel's, and the `area` under the curve (see `noise_area`);
    - `symmetry`: by the names of `MOTIONS`, how far the reconstruction of crystals that are
      written in another way, taken back, is from that of the same crystals as they stand
      (`coords_rmsd` in Å and so on), and their `match_rate`.

    Args:
        noise_levels: ascending, from 0; with fewer than two there is no such curve.
        num_probed: crystals, drawn at random, for `noise` and `symmetry`; None for all, 0 for none.
        seed: of all that is random here. The result does not depend on `batch_size`.
        progress: show progress.

    Raises:
        ValueError: if `noise_levels` do not ascend from 0, or `num_probed` is negative.
    """
    levels = [float(level) for level in noise_levels]
    if len(levels) > 1 and (levels[0] != 0 or levels != sorted(set(levels))):
        raise ValueError(f"noise_levels ascend from 0, unlike {levels}")
    if num_probed is not None and num_probed < 0:
        raise ValueError(f"num_probed is at least 0 (None: all), not {num_probed}")
    generator = torch.Generator().manual_seed(seed)
    originals = dataset.batch(torch.arange(len(dataset)))
    latents = encode_dataset(vae, dataset, batch_size, "Encoding" if progress else None)
    reconstructions = decode_crystals(vae, latents.mean, dataset, batch_size)

    structures = originals.to_structure()
    rebuilt = to_structures(reconstructions)
    results = pool.match(structures, rebuilt, SETTINGS, progress=progress)
    crystals = _per_crystal(dataset, originals, reconstructions, structures, rebuilt, results)
    metrics: dict[str, Any] = {
        **reconstruction_figures([originals], [reconstructions], results),
        "crystals_evaluated": len(dataset),
        **_metre(structures, rebuilt, results, pool, progress),
    }

    noise = torch.randn(latents.mean.shape, generator=generator)
    sample = latents.mean + (0.5 * latents.logvar).exp() * noise
    drawn = decode_crystals(vae, sample, dataset, batch_size)
    drawn_results = match_batches([originals], [drawn], pool, progress=progress)
    metrics["sampled"] = reconstruction_figures([originals], [drawn], drawn_results)

    metrics["gated"] = {
        "match_rate": (crystals["matched"] & crystals["valid"]).mean(),
        "match_rate_default": (crystals["matched_default"] & crystals["valid"]).mean(),
        "valid": crystals["valid"].mean(),
        "valid_originals": crystals["valid_original"].mean(),
    }
    changes = crystals["space_group_change"].dropna()
    kinds = {kind: (changes == kind).mean() for kind in ("kept", "lost", "gained", "changed")}
    metrics["space_group"] = {"symprec": SYMPREC, "crystals": len(changes), **kinds}
    metrics["by_num_atoms"] = _by_num_atoms(crystals)
    metrics["by_element"] = _by_element(crystals, originals, reconstructions)
    metrics["latent"] = latent_statistics(latents.mean, latents.logvar)

    probed = torch.randperm(len(dataset), generator=generator)[:num_probed].sort().values
    if len(probed):
        probe = _Probe(vae, dataset.subset(probed), pool, batch_size, progress)
        if len(levels) > 1:
            metrics["noise"] = probe.noise(levels, generator)
        metrics["symmetry"] = {name: probe.motion(name, generator) for name in MOTIONS}
    pooled = pool_atoms(latents.mean, latents.num_atoms)
    return Evaluation(metrics, crystals, originals, reconstructions, pooled)


def decode_crystals(
    vae: VAEModule, x: Tensor, dataset: CrystalDataset, batch_size: int
) -> CrystalBatch:
    """Decode a latent for each atom of a data set (atom types that are not predicted are its own).

    Args:
        x: (N, latent_dim).
        batch_size: crystals to decode at a time.

    Returns:
        All the crystals, on the host.
    """
    whole = dataset.batch(torch.arange(len(dataset)))
    parts: list[CrystalBatch] = []
    start = 0
    with inference(vae):
        for indices in torch.arange(len(dataset)).split(batch_size):
            batch = dataset.batch(indices).to(vae.device)
            stop = start + len(batch.batch)
            asked = {
                "x": x[start:stop].to(vae.device),
                "num_atoms": batch.num_atoms,
                "batch": batch.batch,
                "max_num_atoms": batch.max_num_atoms,
                "atom_types": batch.atom_types,
            }
            parts.append(vae.reconstruct(vae.decode(asked), batch).to("cpu"))
            start = stop
    return whole.replace(
        atom_types=torch.cat([part.atom_types for part in parts]),
        frac_coords=torch.cat([part.frac_coords for part in parts]),
        lattices=torch.cat([part.lattices for part in parts]),
    )


def _per_crystal(
    dataset: CrystalDataset,
    originals: CrystalBatch,
    reconstructions: CrystalBatch,
    structures: Sequence[Structure],
    rebuilt: Sequence[Structure | None],
    results: Sequence[Sequence[PairResult]],
) -> pd.DataFrame:
    """A row for each crystal; the matcher's settings are those of `SETTINGS`, in that order."""
    right = (reconstructions.atom_types == originals.atom_types).double()
    difference = wrapped_difference(reconstructions.frac_coords, originals.frac_coords)
    squared = transform(difference, originals.lattices[originals.batch]).square().sum(dim=1)

    def mean_over_atoms(values: Tensor) -> np.ndarray:
        return torch.segment_reduce(values, "mean", lengths=originals.num_atoms).numpy()

    cdvae, default = results
    volumes, new_volumes = originals.lattices.det().abs(), reconstructions.lattices.det().abs()
    groups = [
        (space_group(true), None if new is None else space_group(new))
        for true, new in zip(structures, rebuilt, strict=True)
    ]
    frame = pd.DataFrame(
        {
            "id": list(dataset.ids),
            "formula": [s.composition.reduced_formula for s in structures],
            "num_atoms": originals.num_atoms.numpy(),
            "matched": [r.matched for r in cdvae],
            "rms": [r.rms for r in cdvae],
            "status": [r.status for r in cdvae],
            "matched_default": [r.matched for r in default],
            "rms_default": [r.rms for r in default],
            "status_default": [r.status for r in default],
            "atom_types_right": mean_over_atoms(right),
            "coords_rmsd": np.sqrt(mean_over_atoms(squared)),
            "lengths_error": (reconstructions.lengths - originals.lengths).abs().mean(1).numpy(),
            "angles_error": (reconstructions.angles - originals.angles).abs().mean(1).numpy(),
            "volume_error": ((new_volumes - volumes).abs() / volumes).numpy(),
            "spacegroup": [None if old is None else old.number for old, _ in groups],
            "spacegroup_reconstructed": [None if new is None else new.number for _, new in groups],
            "space_group_change": [_change(old, new) for old, new in groups],
            "valid_original": [_is_valid(s) for s in structures],
            "valid": [_is_valid(s) for s in rebuilt],
        }
    ).astype({"spacegroup": "Int64", "spacegroup_reconstructed": "Int64"})
    frame["reason"] = [_reason(*row) for row in zip(cdvae, frame["atom_types_right"], strict=True)]
    return frame.assign(**{name: value.numpy() for name, value in dataset.y.items()})


def _is_valid(structure: Structure | None) -> bool:
    return (
        structure is not None
        and is_valid_structure(structure)
        and is_valid_composition(structure.composition)
    )


def _change(old: SpaceGroup | None, new: SpaceGroup | None) -> str | None:
    if old is None:
        return None
    if new is None:
        return "lost"
    if new.number == old.number:
        return "kept"
    if new.operations_per_atom == old.operations_per_atom:
        return "changed"
    return "lost" if new.operations_per_atom < old.operations_per_atom else "gained"


def _reason(result: PairResult, atom_types_right: float) -> str:
    if result.matched:
        return ""
    if result.status != "unmatched":
        return f"{result.status}: {result.message}"
    if atom_types_right < 1:
        return f"{1 - atom_types_right:.0%} of the atom types are wrong"
    return "no match within the tolerances"


def _metre(
    structures: Sequence[Structure],
    rebuilt: Sequence[Structure | None],
    results: Sequence[Sequence[PairResult]],
    pool: MatcherPool,
    progress: bool,
) -> dict[str, float | None]:
    """`metre` and `metre_default`: share of crystals that some reconstruction matches.

    One that its own does not match is compared with all others of the same composition. None
    where that would be more than `MAX_METRE_PAIRS` pairs per crystal.
    """
    by_formula = defaultdict(list)
    for j, structure in enumerate(rebuilt):
        if structure is not None:
            by_formula[structure.composition.reduced_formula].append(j)
    out: dict[str, float | None] = {}
    for name, settings, own in zip(("metre", "metre_default"), SETTINGS, results, strict=True):
        unmatched = [i for i, result in enumerate(own) if not result.matched]
        rivals = {i: by_formula[structures[i].composition.reduced_formula] for i in unmatched}
        num_pairs = sum(len(others) for others in rivals.values())
        if num_pairs > MAX_METRE_PAIRS * len(structures):
            log.warning("%s is left out: it would take %s more pairs", name, f"{num_pairs:,}")
            out[name] = None
            continue
        pairs = [(i, j) for i, others in rivals.items() for j in others if j != i]
        targets, candidates = [structures[i] for i, _ in pairs], [rebuilt[j] for _, j in pairs]
        others = pool.match(targets, candidates, settings, progress=progress and bool(pairs))
        found = {i for (i, _), result in zip(pairs, others, strict=True) if result.matched}
        out[name] = 1 - (len(unmatched) - len(found)) / len(structures)
    return out


def _by_num_atoms(crystals: pd.DataFrame) -> list[Any]:
    groups = crystals.groupby("num_atoms")
    rows = pd.DataFrame(
        {
            "crystals": groups.size(),
            "match_rate": groups["matched"].mean(),
            "match_rate_default": groups["matched_default"].mean(),
            "rmse": groups["rms"].mean(),
            "rmse_default": groups["rms_default"].mean(),
            "atom_type_accuracy": groups["atom_types_right"].mean(),
            "coords_rmsd": groups["coords_rmsd"].agg(lambda x: np.sqrt((x**2).mean())),
            "lengths_mae": groups["lengths_error"].mean(),
            "angles_mae": groups["angles_error"].mean(),
            "volume_mape": groups["volume_error"].mean(),
        }
    )
    return rows.reset_index().to_dict("records")


def _by_element(
    crystals: pd.DataFrame, originals: CrystalBatch, reconstructions: CrystalBatch
) -> dict[str, Any]:
    atoms = pd.DataFrame(
        {
            "crystal": originals.batch.numpy(),
            "element": originals.atom_types.numpy(),
            "right": (originals.atom_types == reconstructions.atom_types).numpy(),
        }
    )
    holders = atoms.drop_duplicates(["crystal", "element"]).set_index("crystal")
    holders = holders.join(crystals[["matched", "matched_default"]])
    by_atom, by_crystal = atoms.groupby("element"), holders.groupby("element")
    rows = pd.DataFrame(
        {
            "atoms": by_atom.size(),
            "atom_type_accuracy": by_atom["right"].mean(),
            "crystals": by_crystal.size(),
            "match_rate": by_crystal["matched"].mean(),
            "match_rate_default": by_crystal["matched_default"].mean(),
        }
    )
    symbols = [Element.from_Z(z).symbol for z in rows.index]
    return dict(zip(symbols, rows.to_dict("records"), strict=True))


class _Probe:
    """Some crystals whose latents, or whose description, are disturbed."""

    def __init__(
        self,
        vae: VAEModule,
        dataset: CrystalDataset,
        pool: MatcherPool,
        batch_size: int,
        progress: bool,
    ) -> None:
        self.vae = vae
        self.dataset = dataset
        self.pool = pool
        self.batch_size = batch_size
        self.progress = progress
        self.crystals = dataset.batch(torch.arange(len(dataset)))
        self.latents = encode_dataset(vae, dataset, batch_size).mean
        self.reconstructions = decode_crystals(vae, self.latents, dataset, batch_size)

    def noise(self, levels: Sequence[float], generator: torch.Generator) -> dict[str, Any]:
        """Match rates with noise on the latents, the same draw at every level."""
        scale = self.latents.std(dim=0, correction=0)
        noise = torch.randn(self.latents.shape, generator=generator) * scale
        rates = [self._match_rates(self.latents + level * noise, level) for level in levels]
        match_rate, match_rate_default = (list(each) for each in zip(*rates, strict=True))
        return {
            "crystals": len(self.dataset),
            "levels": list(levels),
            "match_rate": match_rate,
            "match_rate_default": match_rate_default,
            "area": noise_area(levels, match_rate),
            "area_default": noise_area(levels, match_rate_default),
        }

    def _match_rates(self, latents: Tensor, level: float) -> list[float]:
        if self.progress:
            log.info("Noise of %g standard deviations on the latents", level)
        decoded = decode_crystals(self.vae, latents, self.dataset, self.batch_size)
        results = match_batches([self.crystals], [decoded], self.pool, progress=self.progress)
        return [summarize(*each).match_rate for each in zip(results, SETTINGS, strict=True)]

    def motion(self, name: str, generator: torch.Generator) -> dict[str, Any]:
        """How far reconstructions move with the way that crystals are written."""
        if self.progress:
            log.info("The same crystals written with another %s", MOTION_WORDS[name])
        motion = MOTIONS[name](self.crystals, generator)
        moved = CrystalDataset.from_batch(motion.moved)
        latents = encode_dataset(self.vae, moved, self.batch_size).mean
        back = motion.undo(decode_crystals(self.vae, latents, moved, self.batch_size))
        errors = ReconstructionErrors(sync_on_compute=False)
        errors.update(back, self.reconstructions)
        results = match_batches([self.crystals], [back], self.pool, [CDVAE], self.progress)
        return {
            "crystals": len(self.dataset),
            **{key: float(value) for key, value in errors.compute().items()},
            "match_rate": summarize(results[0], CDVAE).match_rate,
        }


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write an evaluation's files, as `evaluate` lists them, to a folder that exists."""
    metrics = json.dumps(_json_ready(evaluation.metrics), indent=2, allow_nan=False)
    (folder / "metrics.json").write_text(metrics + "\n")
    table = evaluation.crystals.drop(columns=["space_group_change", "valid_original"])
    table.to_csv(folder / "per_crystal.csv", index=False, float_format="%.6g")
    (folder / "latents.safetensors").write_bytes(save({"pooled": evaluation.pooled}))
    for name in ("original", "reconstruction"):
        frames = _to_atoms(getattr(evaluation, f"{name}s"), evaluation.crystals["id"])
        ase.io.write(folder / f"{name}.extxyz", frames, format="extxyz")


def _to_atoms(crystals: CrystalBatch, ids: Iterable[str]) -> list[Atoms]:
    """ASE `Atoms` with `info["id"]`; zeros for numbers that are not finite."""
    lattices = crystals.lattices.double()
    positions = transform(crystals.frac_coords.double(), lattices[crystals.batch])
    sizes = crystals.num_atoms.tolist()
    parts = zip(
        crystals.atom_types.split(sizes),
        positions.nan_to_num(0, 0, 0).split(sizes),
        lattices.nan_to_num(0, 0, 0),
        ids,
        strict=True,
    )
    return [
        Atoms(numbers.numpy(), positions=x.numpy(), cell=cell.numpy(), pbc=True, info={"id": id_})
        for numbers, x, cell, id_ in parts
    ]


def _json_ready(value: Any) -> Any:
    """Plain Python types, with None for NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_ready(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def evaluation_table(metrics: dict[str, Any]) -> Table:
    """The figures of a `metrics.json` that matter most, for the terminal."""
    table = Table(
        title=f"{metrics['crystals_evaluated']:,} crystals of {metrics['split']}",
        caption="matcher: CDVAE's 0.5, 0.3, 10° and pymatgen's 0.3, 0.2, 5°",
    )
    for name in ("reconstruction", "CDVAE", "pymatgen"):
        table.add_column(name, justify="left" if name == "reconstruction" else "right")

    def row(name: str, form: str, *values: float | None) -> None:
        table.add_row(name, *("-" if value is None else form.format(value) for value in values))

    def both(name: str, form: str, figures: dict[str, Any], key: str) -> None:
        row(name, form, figures[key], figures[f"{key}_default"])

    both("match rate, posterior mean", "{:.2%}", metrics, "match_rate")
    both("  RMSE of matched pairs", "{:.4f}", metrics, "rmse")
    both("  cRMSE, unmatched charged", "{:.4f}", metrics, "crmse")
    both("  METRe", "{:.2%}", metrics, "metre")
    both("match rate, one sample", "{:.2%}", metrics["sampled"], "match_rate")
    both("match rate, valid ones", "{:.2%}", metrics["gated"], "match_rate")
    if noise := metrics.get("noise"):
        for level, *rates in zip(
            noise["levels"], noise["match_rate"], noise["match_rate_default"], strict=True
        ):
            if level:
                row(f"match rate, noise {level:g} std", "{:.2%}", *rates)
        both("  area under that curve", "{:.3f}", noise, "area")
    table.add_section()
    latent, kl = metrics["latent"], metrics["latent"]["kl_per_channel"]
    row("atom types right", "{:.2%}", metrics["atom_type_accuracy"])
    row("distance of atoms, RMSD", "{:.4f} Å", metrics["coords_rmsd"])
    row("lengths, mean error", "{:.4f} Å", metrics["lengths_mae"])
    row("angles, mean error", "{:.3f}°", metrics["angles_mae"])
    row("volume, mean error", "{:.2%}", metrics["volume_mape"])
    row("space group kept", "{:.2%}", metrics["space_group"]["kept"])
    row("active units", "{}", latent["active_units"])
    row("KL per atom", "{:.2f} nats", None if None in kl else sum(kl))
    row("matcher time-outs", "{}", metrics["match_timeouts"])
    return table
