"""Crystals from latents drawn from the prior: as an iterator, and to files."""

import logging
import re
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import ase.io
import numpy as np
import torch
from ase.data import chemical_symbols
from omegaconf import DictConfig
from pymatgen.core import Composition, DummySpecies
from rich.progress import track

from src.commands import load_vae, run_folder
from src.data.cif import Crystal, CrystalError, write_cif
from src.data.schema import CrystalBatch
from src.data.structures import check_numbers, split_batch, to_atoms, to_structure
from src.metrics.validity import invalid_reason, is_valid_composition
from src.utils.checksum import sha256_of
from src.utils.config import to_plain
from src.utils.formulas import full_formula
from src.utils.inference import inference
from src.utils.output import new_folder
from src.utils.strict_json import json_text
from src.vae_module import VAEModule

log = logging.getLogger(__name__)


def sample_crystals(
    vae: VAEModule,
    num_samples: int,
    num_atoms: int | Sequence[int] | None = None,
    compositions: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 512,
) -> Iterator[CrystalBatch]:
    """Decode latents drawn from the standard normal.

    A sample depends on the seed and on its index alone: not on the batch size, up to rounding,
    nor on the number of samples.

    Args:
        vae: the model.
        num_samples: in all.
        num_atoms: of each crystal, for a model that predicts atom types: a number, or a list from
            which one is drawn for each; None: as often as in the training set.
        compositions: formulas of whole cells, for a model that is given atom types: SrTiO3 has 5
            atoms, 4*SrTiO3 has 20. Sample i gets formula i modulo their number, so that each is
            asked for equally often, or once more.
        seed: not negative.
        batch_size: crystals that are decoded at a time.

    Returns:
        An iterator over batches on the CPU, in the order of the samples.

    Raises:
        ValueError: for numbers below one, more compositions than samples, `compositions` that
            cannot be used, or are missing, or are given to a model that predicts atom types, and
            for `num_atoms` that are missing where the checkpoint does not know its training set.
    """
    for name, value in (("num_samples", num_samples), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is at least 1, not {value}")
    if seed < 0:
        raise ValueError(f"seed is not negative; it is {seed}")
    if vae.atom_type_predict:
        if compositions is not None:
            raise ValueError(
                "this model predicts atom types and takes no compositions: leave them out, or use "
                "a model that is given atom types (an experiment .../vae_csp)"
            )
        draw = _draw_num_atoms(vae, num_atoms)
    else:
        if num_atoms is not None:
            raise ValueError("this model is given compositions, which say how many atoms there are")
        draw = _deal_compositions(vae, compositions, num_samples)
    return _sample(vae, num_samples, draw, seed, batch_size)


# atom types (n,) of a sample, 0 where the model is to predict them
Draw = Callable[[int, np.random.Generator], np.ndarray]


def _draw_num_atoms(vae: VAEModule, num_atoms: int | Sequence[int] | None) -> Draw:
    if num_atoms is not None:
        counts = dict(Counter(np.atleast_1d(num_atoms).tolist()))
    elif vae.training_set:
        counts = {int(n): count for n, count in vae.training_set["num_atoms"].items()}
    else:
        raise ValueError(
            "the checkpoint does not know how many atoms the crystals of its training set have: "
            "give num_atoms, a number or a list"
        )
    if not counts or any(not isinstance(n, int) or n < 1 for n in counts):
        raise ValueError(
            f"num_atoms is a whole number from 1 on, or a list of them, not {num_atoms}"
        )
    sizes = np.array(list(counts))
    shares = np.array(list(counts.values())) / sum(counts.values())

    def draw(_: int, rng: np.random.Generator) -> np.ndarray:
        return np.zeros(rng.choice(sizes, p=shares), dtype=np.int64)

    return draw


def _deal_compositions(
    vae: VAEModule, compositions: Sequence[str] | None, num_samples: int
) -> Draw:
    if not compositions:
        raise ValueError(
            "this model is given atom types: say compositions=[NaCl,SrTiO3], or a file with one "
            "formula on each line"
        )
    if num_samples < len(compositions):
        raise ValueError(f"{num_samples} samples are too few for {len(compositions)} compositions")
    known = vae.decoder.max_num_elements - 1
    cells = [parse_composition(formula) for formula in compositions]
    for formula, cell in zip(compositions, cells, strict=True):
        if (heaviest := int(cell.max())) > known:
            raise ValueError(
                f"composition {formula}: {chemical_symbols[heaviest]} has atomic number "
                f"{heaviest}, and the model knows elements 1 to {known}"
            )
    return lambda index, _: cells[index % len(cells)]


def parse_composition(formula: str) -> np.ndarray:
    """Atomic numbers (n,) of a cell with the content `SrTiO3`, or `4*SrTiO3` for four times that.

    Raises:
        ValueError: for what is no formula of whole numbers of atoms.
    """
    times, cell = re.fullmatch(r"(?:(\d+)\s*\*)?(.*)", str(formula).strip()).groups()  # type: ignore[union-attr]
    try:
        amounts = Composition(cell).items()
    except ValueError as error:
        raise ValueError(f"composition {formula!r} is no chemical formula: {error}") from error
    if any(isinstance(specie, DummySpecies) or n != round(n) for specie, n in amounts):
        raise ValueError(f"composition {formula!r} is not of whole numbers of atoms of elements")
    atom_types = [specie.Z for specie, n in amounts for _ in range(round(n) * int(times or 1))]
    if not atom_types:
        raise ValueError(f"composition {formula!r} has no atoms")
    return np.array(atom_types, dtype=np.int64)


def _sample(
    vae: VAEModule, num_samples: int, draw: Draw, seed: int, batch_size: int
) -> Iterator[CrystalBatch]:
    for start in range(0, num_samples, batch_size):
        contents, latents = [], []
        for index in range(start, min(start + batch_size, num_samples)):
            rng = np.random.default_rng([seed, index])
            contents.append(draw(index, rng))
            shape = (len(contents[-1]), vae.latent_dim)
            latents.append(rng.standard_normal(shape, dtype=np.float32))
        ask = CrystalBatch.for_sampling(
            torch.tensor([len(atom_types) for atom_types in contents]),
            torch.from_numpy(np.concatenate(contents)),
        ).to(vae.device)
        encoded = {
            "x": torch.from_numpy(np.concatenate(latents)).to(vae.device),
            "num_atoms": ask.num_atoms,
            "batch": ask.batch,
            "max_num_atoms": ask.max_num_atoms,
            "atom_types": ask.atom_types,
        }
        with inference(vae):
            crystals = vae.reconstruct(vae.decode(encoded), ask)
        yield crystals.to("cpu")


# To files


def sample(cfg: DictConfig) -> dict[str, Any]:
    """Sample crystals as `configs/sample_vae.yaml` says, into the new folder `cfg.output`
    (`samples` in the folder of the checkpoint's run, unless given).

    It gets `cifs/` or `cifs.zip`, `samples.extxyz`, and `samples.json`: what was asked for, the
    counts, and under `samples` for each its `id`, `formula`, `num_atoms`, `valid_structure`,
    `valid_composition` (see `src.metrics.validity`), `written`
    (false where no file can hold it, as with numbers that are not finite), and `reason`, why its
    structure is not valid. Samples are written as they come and not kept in memory.

    Returns:
        `samples.json` without `samples`.

    Raises:
        ValueError: for a checkpoint, a request or an output that cannot be used, or if none of
            the samples can be written.
    """
    if cfg.format not in ("folder", "zip"):
        raise ValueError(f"format is folder or zip, not {cfg.format!r}")
    output = Path(cfg.output or run_folder(cfg.ckpt_path) / "samples")
    vae = load_vae(cfg)
    batches = sample_crystals(
        vae,
        cfg.num_samples,
        to_plain(cfg.num_atoms),
        _read_compositions(cfg.compositions),
        cfg.seed,
        cfg.batch_size,
    )
    with (
        new_folder(output, marker="samples.json", overwrite=cfg.overwrite) as folder,
        tempfile.TemporaryFile("w+", dir=folder, encoding="utf-8") as rows,
    ):
        counts = _write_samples(batches, cfg.num_samples, folder, cfg.format, rows)
        if not counts["written"]:
            raise ValueError(f"none of {cfg.num_samples} samples has a cell that a file can hold")
        header = {
            "checkpoint": str(cfg.ckpt_path),
            "checkpoint_sha256": sha256_of(cfg.ckpt_path),
            "seed": cfg.seed,
            "num_samples": cfg.num_samples,
            "num_atoms": to_plain(cfg.num_atoms),
            "compositions": to_plain(cfg.compositions),
            "counts": counts,
        }
        _join(folder / "samples.json", header, rows)
    log.info(
        "%d samples are in %s; valid: %s structures, %s compositions, %s both",
        counts["written"], output, *list(counts.values())[1:],
    )  # fmt: skip
    if missing := cfg.num_samples - counts["written"]:
        log.warning("%d samples have a cell that no file can hold: see samples.json", missing)
    return header


def _write_samples(
    batches: Iterator[CrystalBatch], num_samples: int, folder: Path, format: str, rows: TextIO
) -> dict[str, Any]:
    """Write crystals to `folder` and a line of JSON for each to `rows`; give the counts."""
    counts = dict.fromkeys(("written", "valid_structure", "valid_composition", "valid"), 0)
    crystals = (crystal for batch in batches for crystal in split_batch(batch))
    with (
        (folder / "samples.extxyz").open("w", encoding="utf-8") as extxyz,
        _cif_writer(folder, format) as write,
    ):
        bar = track(crystals, "Sampling", total=num_samples, transient=True)
        for index, crystal in enumerate(bar):
            row = _describe(f"sample-{index:06d}", crystal)
            if row["written"]:
                write(f"{row['id']}.cif", write_cif(crystal, row["id"]))
                ase.io.write(extxyz, to_atoms(crystal, row["id"]), format="extxyz")
            rows.write(f"{',' if index else ''}\n    {json_text(row, indent=None)}")
            for name in ("written", "valid_structure", "valid_composition"):
                counts[name] += bool(row[name])
            counts["valid"] += bool(row["valid_structure"] and row["valid_composition"])
    return counts


def _describe(id: str, crystal: Crystal) -> dict[str, Any]:
    composition = Composition(Counter(chemical_symbols[z] for z in crystal.atom_types))
    reason: str | None
    try:
        check_numbers(crystal)
        written, reason = True, invalid_reason(to_structure(crystal))
    except CrystalError as error:
        written, reason = False, str(error)
    return {
        "id": id,
        "formula": full_formula(composition),
        "num_atoms": crystal.num_atoms,
        "valid_structure": reason is None,
        "valid_composition": is_valid_composition(composition),
        "written": written,
        "reason": reason,
    }


@contextmanager
def _cif_writer(folder: Path, format: str) -> Iterator[Callable[[str, str], Any]]:
    """A function of a file's name and text that writes it to `cifs/` or `cifs.zip`."""
    if format == "zip":
        with zipfile.ZipFile(folder / "cifs.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            yield archive.writestr
    else:
        (folder / "cifs").mkdir()
        yield lambda name, text: (folder / "cifs" / name).write_text(text, encoding="utf-8")


def _join(path: Path, header: dict[str, Any], rows: TextIO) -> None:
    """One JSON object of a header and, under `samples`, of rows that may not fit in memory."""
    rows.seek(0)
    with path.open("w", encoding="utf-8") as file:
        file.write(json_text(header).removesuffix("\n}"))
        file.write(',\n  "samples": [')
        shutil.copyfileobj(rows, file)
        file.write("\n  ]\n}\n")


def _read_compositions(given: Any) -> list[str] | None:
    """Of a list, of a file with one on each line, or of text with commas between them."""
    if given is None:
        return None
    if not isinstance(given, str):
        return [str(formula) for formula in given]
    path = Path(given).expanduser()
    formulas = path.read_text(encoding="utf-8").splitlines() if path.is_file() else given.split(",")
    return [formula.strip() for formula in formulas if formula.strip()]
