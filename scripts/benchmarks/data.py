"""Speed of converting CIF text to cached tensors, and cached tensors to batches."""

import tempfile
import warnings
from pathlib import Path

import pandas as pd
import torch
from pymatgen.core import Structure
from torch_geometric.loader import DataLoader

from benchmarks import Row, alternate, compare
from src.data.dataset import ReadOptions, load_split
from src.data.readers import CsvReader
from src.data.schema import CrystalBatch

BATCH_SIZE = 256


def run(path: Path, rounds: int) -> list[Row]:
    """Compare with pymatgen's CIF reader and PyG's collate function, on one core."""
    torch.set_num_threads(1)
    cifs = pd.read_csv(path)["cif"]
    few = cifs.sample(min(200, len(cifs)), random_state=0).tolist()

    def with_pymatgen() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for cif in few:
                structure = Structure.from_str(cif, fmt="cif")
                CrystalBatch.from_structures([structure.get_reduced_structure("niggli")])
        return len(few)

    def with_cache() -> float:
        with tempfile.TemporaryDirectory() as folder:
            return len(load_split(CsvReader(path), ReadOptions(), Path(folder), max_rejected=1.0))

    rates = alternate({"pymatgen": with_pymatgen, "xtal-latent": with_cache}, rounds, "CIF")
    rows = compare("data: CSV of CIFs to tensors, one core", rates, "crystals/s")

    with tempfile.TemporaryDirectory() as folder:
        dataset = load_split(CsvReader(path), ReadOptions(), Path(folder), max_rejected=1.0)
    loader = DataLoader([dataset[i] for i in range(len(dataset))], BATCH_SIZE, shuffle=True)

    def collate() -> float:
        return sum(len(batch.num_atoms) for batch in loader)

    def index() -> float:
        order = torch.randperm(len(dataset))
        return sum(len(dataset.batch(part).num_atoms) for part in order.split(BATCH_SIZE))

    rates = alternate({"PyG collate": collate, "xtal-latent": index}, rounds, "batches")
    return rows + compare(f"data: batches of {BATCH_SIZE}, one core", rates, "crystals/s")
