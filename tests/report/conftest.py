"""Evaluation folders with crystals from the included data and reconstructions with known errors."""

import json
from pathlib import Path

import ase.io
import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from pymatgen.io.ase import AseAtomsAdaptor
from safetensors.numpy import save_file

from src.data.cif import read_cif
from src.data.structures import NamedStructure

PROTOTYPES = Path(__file__).resolve().parents[2] / "data" / "prototypes" / "val.csv"
NUM_CRYSTALS = 14


@pytest.fixture(scope="session")
def crystals() -> list[Atoms]:
    parsed = [read_cif(cif) for cif in pd.read_csv(PROTOTYPES, nrows=NUM_CRYSTALS)["cif"]]
    return [
        Atoms(c.atom_types, cell=c.lattice, scaled_positions=c.frac_coords, pbc=True)
        for c in parsed
    ]


@pytest.fixture
def make_folder(crystals, tmp_path):
    """Write a folder in which crystal k has the ID `id-k` and an rms of k / 100.

    All crystals match except 2, 5 and 9. The reconstruction of crystal 5 is invalid.
    """

    def make(ids: dict[int, str] | None = None, blocks: bool = True) -> Path:
        folder = tmp_path / "evaluation"
        folder.mkdir()
        names = [(ids or {}).get(k, f"id-{k}") for k in range(NUM_CRYSTALS)]
        rng = np.random.default_rng(0)
        originals, reconstructions = [], []
        for name, crystal in zip(names, crystals, strict=True):
            original, rebuilt = crystal.copy(), crystal.copy()
            rebuilt.rattle(0.05, rng=rng)
            original.info = rebuilt.info = {"id": name}
            originals.append(original)
            reconstructions.append(rebuilt)
        reconstructions[5].set_cell(np.zeros((3, 3)))
        ase.io.write(folder / "original.extxyz", originals, format="extxyz")
        ase.io.write(folder / "reconstruction.extxyz", reconstructions, format="extxyz")
        table = pd.DataFrame({"id": names, "formula": [str(a.symbols) for a in originals]})
        table["num_atoms"] = [len(a) for a in originals]
        table["matched"] = ~table.index.isin([2, 5, 9])
        table["rms"] = (table.index / 100).where(table["matched"])
        table["status"] = np.where(table["matched"], "matched", "unmatched")
        table["coords_rmsd"] = 0.05 * table.index
        table["reason"] = np.where(table["matched"], "", "no match within the tolerances")
        if blocks:
            table["spacegroup"] = [1, 2, 15, 16, 75, 143, 168, 195, 230, 225, 139, 62, 12, np.nan]
            table["formation_energy"] = np.linspace(-3, 0, NUM_CRYSTALS)
            write_blocks(folder)
        table.to_csv(folder / "per_crystal.csv", index=False)
        metrics = {**FLAT, **(BLOCKS if blocks else {})}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        return folder

    return make


@pytest.fixture
def make_samples(crystals, tmp_path):
    """Write a folder of samples; of 3 known crystals, the first two are the first two samples.

    The third has the formula of sample 2. Sample 5 is invalid and could not be written.
    """

    def make() -> tuple[Path, list[NamedStructure]]:
        folder = tmp_path / "samples"
        folder.mkdir()
        rows, written = [], []
        for k, crystal in enumerate(crystals):
            row = {"id": f"sample-{k:06d}", "formula": "Na1 Cl1", "num_atoms": len(crystal)}
            row |= {"valid_structure": k != 5, "valid_composition": k % 2 == 0, "written": k != 5}
            rows.append({**row, "reason": None if k != 5 else "the cell has no volume"})
            if k != 5:
                atoms = crystal.copy()
                atoms.info = {"id": row["id"]}
                written.append(atoms)
        ase.io.write(folder / "samples.extxyz", written, format="extxyz")
        counts = {"written": 13, "valid_structure": 13, "valid_composition": 7, "valid": 7}
        content = {"checkpoint": "ldm.ckpt", "seed": 0, "conditions": {}, "counts": counts}
        (folder / "samples.json").write_text(json.dumps({**content, "samples": rows}))
        other = crystals[2].copy()
        other.set_cell(other.cell.array @ np.diag([2, 1, 0.4]), scale_atoms=True)
        known = [AseAtomsAdaptor.get_structure(each) for each in [*crystals[:2], other]]
        named = [NamedStructure(f"known-{k}", each, Path("x")) for k, each in enumerate(known)]
        return folder, named

    return make


def write_blocks(folder: Path) -> None:
    pooled = np.random.default_rng(1).normal(size=(NUM_CRYSTALS, 4)).astype(np.float32)
    save_file({"pooled": pooled}, folder / "latents.safetensors")
    training = pd.DataFrame(
        {
            "step": [9, 9, 19, 19],
            "train/loss": [3.0, np.nan, 1.0, np.nan],
            "val/loss": [np.nan, 2.5, np.nan, 1.5],
            "val/match_rate": [np.nan, 0.25, np.nan, 0.75],
        }
    )
    training.to_csv(folder / "training.csv", index=False)


FLAT = {
    "match_rate": 11 / 14,
    "rmse": 0.07,
    "match_rate_default": 0.5,
    "rmse_default": None,
    "atom_type_accuracy": 0.9,
    "crystals_evaluated": NUM_CRYSTALS,
}
BLOCKS = {
    "split": "test",
    "checkpoint": "run/checkpoints/best.ckpt",
    "sampled": {"match_rate": 0.7, "match_rate_default": 0.4, "atom_type_accuracy": 0.8},
    "gated": {"match_rate": 0.6, "match_rate_default": 0.3},
    "by_num_atoms": [
        {"num_atoms": 3, "crystals": 5, "match_rate": 1.0, "match_rate_default": 0.6},
        {"num_atoms": 5, "crystals": 9, "match_rate": 0.75, "match_rate_default": None},
    ],
    "by_element": {
        "O": {"atoms": 30, "atom_type_accuracy": 0.99, "crystals": 8, "match_rate": 0.9},
        "Fe": {"atoms": 3, "atom_type_accuracy": 0.5, "crystals": 2, "match_rate": 0.5},
    },
    "space_group": {"symprec": 0.1, "kept": 0.9, "lost": 0.1, "gained": 0.0},
    "latent": {"active_units": 1, "kl_per_channel": [1.0, 0.1], "mean": [0, 0], "std": [0.9, 0.1]},
    "noise": {
        "levels": [0, 0.5, 1],
        "match_rate": [0.8, 0.4, 0.0],
        "match_rate_default": [0.5, 0.2, 0.0],
        "match_rate_unreduced": [0.8, 0.5, 0.0],
        "area": 0.4,
    },
    "symmetry": {"rotation": {"coords_rmsd": 0.0, "match_rate": 1.0}},
}
