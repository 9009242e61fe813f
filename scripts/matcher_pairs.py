"""Pairs of crystals on which `compare_matchers.py` compares two matchers."""

from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pymatgen.core import Lattice, Structure

from src.commands.references import samples_file
from src.data.structures import Skipped, iter_structures
from src.metrics.reconstruction.evaluate import to_structures
from src.utils.inference import inference
from src.vae_module import VAEModule
from src.vae_module.datasets import decode_latents

ROOT = Path(__file__).resolve().parents[1]

Pair = tuple[Structure, Structure]


class Families:
    """Ways to make a pair from random numbers; each method of `ALL` is one family.

    Args:
        data: Folder with mp_20, perov_5, carbon_24 and mpts_52.
        vae: Checkpoint of a VAE, for the families of its reconstructions.
        samples: Output of `sample_ldm.py`, for the family of generated crystals.
    """

    def __init__(self, data: Path, vae: Path | None = None, samples: Path | None = None) -> None:
        self.data, self.vae, self.samples = data, vae, samples
        self.names = [
            name
            for name in ALL
            if not (name.startswith("decoded_") and vae is None)
            and not (name == "generated" and samples is None)
        ]

    def pair(self, name: str, seed: int, number: int) -> Pair:
        """A pair of a family, which depends on nothing but the arguments."""
        pair: Pair = getattr(self, name)(np.random.default_rng([seed, ALL.index(name), number]))
        return pair

    def mp_20(self, rng: np.random.Generator) -> Pair:
        """A crystal and a simulated reconstruction; also in the next three methods."""
        return self._reconstruction("mp_20", rng)

    def perov_5(self, rng: np.random.Generator) -> Pair:
        return self._reconstruction("perov_5", rng)

    def carbon_24(self, rng: np.random.Generator) -> Pair:
        return self._reconstruction("carbon_24", rng)

    def mpts_52(self, rng: np.random.Generator) -> Pair:
        return self._reconstruction("mpts_52", rng)

    def carbon_pairs(self, rng: np.random.Generator) -> Pair:
        """Two Carbon-24 crystals with the same number of atoms."""
        texts = _by_number_of_atoms(self.data / "carbon_24")
        group = texts[rng.choice(list(texts))]
        return _read(rng.choice(group)), _read(rng.choice(group))

    def polymorphs(self, rng: np.random.Generator) -> Pair:
        """Two MP-20 crystals with the same formula, as compared for novelty."""
        groups = _polymorphs(self.data / "mp_20")
        first, second = rng.choice(groups[rng.integers(len(groups))], 2, replace=False)
        return _read(first), _read(second)

    def prototypes(self, rng: np.random.Generator) -> Pair:
        """Two prototypes with the same numbers of atoms, on the same elements."""
        groups = _same_numbers(ROOT / "data" / "prototypes")
        first, second = map(_read, rng.choice(groups[rng.integers(len(groups))], 2))
        # the elements of the first, each in place of one of which there are as many
        species: dict[Any, Any] = {}
        for count in set(second.composition.get_el_amt_dict().values()):
            ours, theirs = (
                sorted(k for k, v in s.composition.get_el_amt_dict().items() if v == count)
                for s in (first, second)
            )
            species.update(zip(theirs, rng.permutation(ours).tolist(), strict=True))
        second.replace_species(species)
        return first, _shaken(second, rng, rng.choice([0, 0.02]))

    def supercells(self, rng: np.random.Generator) -> Pair:
        """A crystal and a supercell of up to four cells, displaced or not."""
        crystal = self._crystal(rng, most=12)
        matrix = np.diag(rng.permutation([1, 1, int(rng.integers(2, 5))]))
        matrix[0, 1] = rng.integers(-1, 2)
        supercell = crystal.copy().make_supercell(matrix)
        if rng.random() < 0.5:
            crystal = _shaken(crystal.copy().make_supercell(matrix), rng, 0.05 * rng.random())
        return crystal, _shaken(supercell, rng, rng.choice([0, 0.01, 0.05]))

    def chiral(self, rng: np.random.Generator) -> Pair:
        """A crystal without symmetry and its mirror image."""
        crystal = _shaken(self._crystal(rng, most=16), rng, 0.3)
        mirror = Structure(crystal.lattice, crystal.species, -crystal.frac_coords)
        return crystal, _shaken(mirror, rng, rng.choice([0, 0.03]))

    def single(self, rng: np.random.Generator) -> Pair:
        """Two crystals of one atom, in more or less similar cells."""
        lengths, angles = rng.uniform(2.5, 5, 3), rng.choice([60.0, 90.0, 109.47, 75.0], 3)
        if rng.random() < 0.7:
            lengths[:], angles[:] = lengths[0], angles[0]
        cells = []
        for noise in rng.choice([0, 1e-4, 0.05, 0.15], 2):
            while True:
                parameters = [
                    *(lengths * np.exp(noise * rng.standard_normal(3))),
                    *(angles + 60 * noise * rng.standard_normal(3)),
                ]
                with np.errstate(all="ignore"):
                    cell = Lattice.from_parameters(*parameters)
                if cell.volume > 0.2 * np.prod(cell.lengths):
                    break
                angles = np.full(3, 90.0)
            cells.append(Structure(cell, ["Fe"], rng.random((1, 3))))
        return cells[0], cells[1]

    def skewed(self, rng: np.random.Generator) -> Pair:
        """A crystal, and the same crystal in a skewed cell, slightly distorted."""
        crystal = self._crystal(rng, most=20)
        matrix = np.eye(3, dtype=int)
        for _ in range(int(rng.integers(1, 4))):
            i, j = rng.choice(3, 2, replace=False)
            matrix[i] += int(rng.choice([-2, -1, 1, 2])) * matrix[j]
        skewed = Structure(
            matrix @ crystal.lattice.matrix,
            crystal.species,
            crystal.cart_coords,
            coords_are_cartesian=True,
        )
        return crystal, _shaken(skewed, rng, rng.choice([0, 1e-4, 0.05]))

    def nearly_symmetric(self, rng: np.random.Generator) -> Pair:
        """Cells that are cubic or hexagonal up to 1e-7 to 1e-2, a range around the tolerances."""
        crystal = self._crystal(rng, most=8)
        a = (crystal.volume) ** (1 / 3)
        cell = (
            Lattice.cubic(a)
            if rng.random() < 0.5
            else Lattice.hexagonal(a, a * rng.uniform(0.8, 2))
        )
        pair = []
        for _ in range(2):
            distortion = 10 ** rng.uniform(-7, -2) * rng.standard_normal((3, 3))
            matrix = cell.matrix + distortion * a
            pair.append(Structure(matrix, crystal.species, crystal.frac_coords))
        return pair[0], _shaken(pair[1], rng, rng.choice([0, 0.02]))

    def exact(self, rng: np.random.Generator) -> Pair:
        """A crystal and a shifted copy of it, with its atoms in another order."""
        crystal = self._crystal(rng, most=30)
        moved = crystal.copy()
        moved.translate_sites(range(len(moved)), rng.choice([0, 0.5, rng.random()]) * np.ones(3))
        return crystal, shuffled(moved, rng)

    def decoded_mp_20(self, rng: np.random.Generator) -> Pair:
        """A VAE's reconstruction from latents with noise, and the crystal; also in the next three.

        The noise has a standard deviation of up to that of each channel over the data set. The atom
        types are the crystal's, whatever the VAE predicts: other compositions never match.
        """
        return self._decoded("mp_20", rng)

    def decoded_perov_5(self, rng: np.random.Generator) -> Pair:
        return self._decoded("perov_5", rng)

    def decoded_carbon_24(self, rng: np.random.Generator) -> Pair:
        return self._decoded("carbon_24", rng)

    def decoded_mpts_52(self, rng: np.random.Generator) -> Pair:
        return self._decoded("mpts_52", rng)

    def generated(self, rng: np.random.Generator) -> Pair:
        """A generated crystal and one of MP-20 with the same formula."""
        samples, known = self._with_known
        sample = samples[rng.integers(len(samples))]
        return sample, _read(rng.choice(known[sample.composition.reduced_formula]))

    def _decoded(self, name: str, rng: np.random.Generator) -> Pair:
        while True:
            crystal = _read(rng.choice(_texts(self.data / name)))
            batch = self._model.to_batch([crystal])
            with inference(self._model):
                mean = self._model.encode(batch)["posterior"].mean
            level = rng.choice([0, 0.05, 0.1, 0.2, 0.5, 1.0])
            noise = torch.from_numpy(rng.standard_normal(mean.shape)).to(mean)
            x = mean + level * self._spread(name) * noise
            with inference(self._model):
                found = decode_latents(self._model, x, batch)
            (decoded,) = to_structures(found.replace(atom_types=batch.atom_types))
            if decoded is not None and np.isfinite(decoded.volume) and decoded.volume > 0.1:
                return decoded, crystal

    @cached_property
    def _model(self) -> VAEModule:
        return VAEModule.load_from_checkpoint(str(self.vae), map_location="cpu").eval()

    @cache  # noqa: B019 - there is one object
    def _spread(self, name: str) -> torch.Tensor:
        """The standard deviation of each latent channel over some crystals: (latent_dim,)."""
        crystals = [_read(text) for text in _texts(self.data / name)[:256]]
        batch = self._model.to_batch(crystals)
        with inference(self._model):
            mean: torch.Tensor = self._model.encode(batch)["posterior"].mean
        return mean.std(dim=0)

    @cached_property
    def _with_known(self) -> tuple[list[Structure], dict[str, list[str]]]:
        """Generated crystals with formulas of MP-20, and the crystals of MP-20 by formula."""
        known = _by_formula(self.data / "mp_20")
        found = iter_structures(samples_file(Path(str(self.samples))))
        samples = [item.structure for item in found if not isinstance(item, Skipped)]
        return [s for s in samples if s.composition.reduced_formula in known], known

    def _crystal(self, rng: np.random.Generator, most: int) -> Structure:
        while True:
            name = rng.choice(["mp_20", "perov_5", "carbon_24", "mpts_52"])
            crystal = _read(rng.choice(_texts(self.data / name)))
            if len(crystal) <= most:
                return crystal

    def _reconstruction(self, name: str, rng: np.random.Generator) -> Pair:
        crystal = _read(rng.choice(_texts(self.data / name)))
        prediction = _shaken(
            crystal, rng, rng.choice([0, 0.01, 0.05, 0.1, 0.2, 0.4]) * rng.random()
        )
        return (shuffled(prediction, rng) if rng.random() < 0.5 else prediction), crystal


# their order decides about the random numbers of each: new ones come last
ALL = [name for name, part in vars(Families).items() if callable(part) and not name.startswith("_")]
ALL.remove("pair")


def _shaken(crystal: Structure, rng: np.random.Generator, noise: float) -> Structure:
    """Displaced by `noise` times (V/N)^(1/3) in each direction, the cell strained by a fifth."""
    if not noise:
        return crystal
    matrix = crystal.lattice.matrix * np.exp(0.2 * noise * rng.standard_normal((3, 1)))
    matrix = matrix @ (np.eye(3) + 0.2 * noise * rng.standard_normal((3, 3)))
    step = noise * (crystal.volume / len(crystal)) ** (1 / 3)
    shaken = Structure(matrix, crystal.species, crystal.frac_coords)
    coords = shaken.cart_coords + step * rng.standard_normal((len(crystal), 3))
    return Structure(matrix, crystal.species, coords, coords_are_cartesian=True)


def shuffled(crystal: Structure, rng: np.random.Generator) -> Structure:
    """The same crystal with its atoms in another order."""
    return Structure.from_sites([crystal[i] for i in rng.permutation(len(crystal))])


@lru_cache(maxsize=4096)
def _parse(text: str) -> Structure:
    return Structure.from_str(text, fmt="cif")


def _read(text: str) -> Structure:
    return _parse(str(text)).copy()


@cache
def _texts(folder: Path) -> np.ndarray:
    (path,) = folder.glob("test.csv*")
    return pd.read_csv(path)["cif"].to_numpy(dtype=object)


@cache
def _by_number_of_atoms(folder: Path) -> dict[int, list[str]]:
    groups: dict[int, list[str]] = {}
    for text in _texts(folder):
        groups.setdefault(len(_parse(text)), []).append(text)
    return {count: group for count, group in groups.items() if len(group) > 1}


@cache
def _by_formula(folder: Path) -> dict[str, list[str]]:
    """The crystals of all splits by reduced formula."""
    groups: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.csv*")):
        for text in pd.read_csv(path)["cif"]:
            formula = next(
                line
                for line in text.splitlines()
                if line.startswith("_chemical_formula_structural")
            )
            groups.setdefault(formula.split()[-1], []).append(text)
    return groups


@cache
def _polymorphs(folder: Path) -> list[list[str]]:
    return [group for group in _by_formula(folder).values() if len(group) > 1]


@cache
def _same_numbers(folder: Path) -> list[list[str]]:
    groups: dict[tuple, list[str]] = {}
    for text in _texts(folder):
        amounts = _parse(text).composition.get_el_amt_dict().values()
        groups.setdefault(tuple(sorted(amounts)), []).append(text)
    return [group for group in groups.values() if len(group) > 1]
