"""Read the latents of a data set, written by `src/encode_vae.py`, to train a model on them.

A folder of latents contains `{train,val,test}.safetensors`, which are memory-mapped, and
`stats.json`, which describes them and has the moments of each channel over the training split.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import Dataset

from src.data.flat import MappedTensors, ragged_index, save_tensors
from src.data.readers import DataError

_PER_ATOM = ("mean", "logvar", "atom_types")
_CHUNK = 2**16  # atoms that are converted to float64 at a time


@dataclass(frozen=True, slots=True)
class LatentBatch:
    """The posteriors of the N atoms of B crystals.

    Args:
        mean, logvar: (N, Z) float32.
        atom_types: (N,) int64 atomic numbers.
        num_atoms: (B,) int64 number of atoms in each crystal.
        batch: (N,) int64 crystal of each atom.
        max_num_atoms: atoms in the largest crystal.
        y: properties by name, (B,) each, NaN where missing.
    """

    mean: Tensor
    logvar: Tensor
    atom_types: Tensor
    num_atoms: Tensor
    batch: Tensor
    max_num_atoms: int
    y: dict[str, Tensor]

    def mode(self) -> Tensor:
        """The posterior means: (N, Z)."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One sample of each posterior: (N, Z)."""
        noise = torch.randn(
            self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype
        )
        return self.mean + (0.5 * self.logvar).exp() * noise

    def encoded(self, x: Tensor | None = None) -> dict[str, Any]:
        """The input of `VAEModule.decode`, with latents `x` (N, Z) or, by default, the means."""
        return {
            "x": self.mean if x is None else x,
            "num_atoms": self.num_atoms,
            "batch": self.batch,
            "max_num_atoms": self.max_num_atoms,
            "atom_types": self.atom_types,
        }

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "LatentBatch":
        """A copy of the batch on another device."""
        names = ("mean", "logvar", "atom_types", "num_atoms", "batch")
        moved = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in names}
        y = {name: value.to(device, non_blocking=non_blocking) for name, value in self.y.items()}
        return replace(self, **moved, y=y)


def collate(batches: Sequence[LatentBatch]) -> LatentBatch:
    """Join batches, as for `DataLoader(latents, batch_size=32, collate_fn=collate)`."""
    num_atoms = torch.cat([each.num_atoms for each in batches])
    index = torch.arange(len(num_atoms), device=num_atoms.device)
    return LatentBatch(
        **{name: torch.cat([getattr(each, name) for each in batches]) for name in _PER_ATOM},
        num_atoms=num_atoms,
        batch=index.repeat_interleave(num_atoms),
        max_num_atoms=max(each.max_num_atoms for each in batches),
        y={name: torch.cat([each.y[name] for each in batches]) for name in batches[0].y},
    )


def pad(x: Tensor, num_atoms: Tensor) -> tuple[Tensor, Tensor]:
    """Pad what is known of each atom, for models that want one row per crystal.

    Args:
        x: (N, Z), the atoms of all crystals one after another.
        num_atoms: (B,) number of atoms in each crystal.

    Returns:
        (B, L, Z), with zeros where there is no atom and L atoms in the largest crystal; and (B, L),
        True where there is an atom.
    """
    places = torch.arange(int(num_atoms.max()), device=x.device)
    mask = places < num_atoms[:, None]
    padded = x.new_zeros(*mask.shape, x.shape[1])
    padded[mask] = x
    return padded, mask


def unpad(padded: Tensor, mask: Tensor) -> Tensor:
    """The inverse of `pad`: (N, Z)."""
    return padded[mask]


class LatentDataset(Dataset):
    """The posteriors of the atoms of many crystals in flat tensors.

    To iterate over batches, use
    `CrystalLoader(latents, EpochSampler(len(latents), batch_size, shuffle=True))`.

    Args:
        mean, logvar: (N, Z) float32.
        atom_types: (N,) atomic numbers.
        num_atoms: (B,) number of atoms in each crystal.
        ids: B names; by default the indices of the crystals.
        y: properties by name, (B,) each.
        stats: the content of `stats.json`, required by `normalize`.
    """

    def __init__(
        self,
        mean: Tensor,
        logvar: Tensor,
        atom_types: Tensor,
        num_atoms: Tensor,
        ids: Sequence[str] | None = None,
        y: Mapping[str, Tensor] | None = None,
        stats: Mapping[str, Any] | None = None,
    ) -> None:
        self.mean = mean
        self.logvar = logvar
        self.atom_types = atom_types
        self.num_atoms = num_atoms
        self.ids = [str(i) for i in range(len(num_atoms))] if ids is None else ids
        self.y = dict(y or {})
        self.stats = dict(stats or {})
        self._file: MappedTensors | None = None
        self._starts = torch.nn.functional.pad(num_atoms.long().cumsum(0), (1, 0))[:-1]

    @classmethod
    def load(cls, path: str | Path, split: str = "train") -> Self:
        """Open a split of a folder of latents; the large tensors stay on disk until accessed.

        Args:
            path: the folder, or the file of a split in it.
            split: `train`, `val` or `test`; ignored if `path` is a file.

        Raises:
            DataError: if the split does not exist or its file cannot be used.
        """
        path = Path(path).expanduser()
        folder, file = (
            (path, path / f"{split}.safetensors") if path.is_dir() else (path.parent, path)
        )
        if not file.is_file():
            found = sorted(other.stem for other in folder.glob("*.safetensors"))
            raise DataError(
                f"there is no file {file} (splits in that folder: "
                f"{', '.join(found) or 'none'}): write them with src/encode_vae.py"
            )
        try:
            mapped = MappedTensors(file)
            stats_file = folder / "stats.json"
            stats = json.loads(stats_file.read_text()) if stats_file.is_file() else None
            self = cls(**mapped.tensors, ids=mapped.ids, y=mapped.y, stats=stats)
            self._file = mapped
            return self
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{file} is damaged or does not contain latents ({error}): write it again with "
                "src/encode_vae.py"
            ) from error

    def save(self, path: Path) -> None:
        """Write a file that `load` can read, without the stats."""
        names = ("mean", "logvar", "atom_types", "num_atoms")
        save_tensors(path, {name: getattr(self, name) for name in names}, self.ids, self.y)

    @property
    def latent_dim(self) -> int:
        return self.mean.shape[1]

    def __len__(self) -> int:
        return len(self.num_atoms)

    def __getitem__(self, index: int) -> LatentBatch:
        """Crystal `index` as a batch of one."""
        return self.batch(torch.tensor([range(len(self))[index]]))

    def batch(self, indices: Tensor) -> LatentBatch:
        """The batch of crystals at `indices` ((b,) int64), in that order."""
        num_atoms = self.num_atoms[indices].long()
        total, starts = int(num_atoms.sum()), self._starts[indices]
        file = self._file
        if file is not None and file.is_large:
            mean, logvar, atom_types = (file.rows(name, starts, num_atoms) for name in _PER_ATOM)
        else:
            atoms = ragged_index(starts, num_atoms, total)
            mean, logvar, atom_types = (getattr(self, name)[atoms] for name in _PER_ATOM)
        crystals = torch.arange(len(num_atoms))
        return LatentBatch(
            mean=mean,
            logvar=logvar,
            atom_types=atom_types.long(),
            num_atoms=num_atoms,
            batch=crystals.repeat_interleave(num_atoms, output_size=total),
            max_num_atoms=int(num_atoms.max()) if len(num_atoms) else 0,
            y={name: value[indices] for name, value in self.y.items()},
        )

    def moments(self) -> dict[str, list[float]]:
        """Compute the moments of each channel over all atoms, in float64.

        Returns:
            `mean` and `std` of the posterior means, and `posterior_std`, the square root of the
            mean posterior variance.
        """

        def average(values: Tensor, function: Any) -> Tensor:
            total = torch.stack([function(x.double()).sum(0) for x in values.split(_CHUNK)]).sum(0)
            return total / len(values)

        mean = average(self.mean, lambda x: x)
        variance = average(self.mean, lambda x: (x - mean) ** 2)
        return {
            "mean": mean.tolist(),
            "std": variance.sqrt().tolist(),
            "posterior_std": average(self.logvar, torch.exp).sqrt().tolist(),
        }

    def normalize(self, x: Tensor) -> Tensor:
        """Shift and scale latents (..., Z) by the moments of the training split.

        By the law of total variance, samples from the posteriors of the training split then have
        mean 0 and variance 1 in each channel. (Scaling by the spread of the means alone would blow
        up channels that carry no information, whose means hardly vary.)

        Raises:
            DataError: if the moments of the training split are missing.
        """
        mean, std = self._shift_and_scale(x)
        return (x - mean) / std

    def denormalize(self, x: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        mean, std = self._shift_and_scale(x)
        return x * std + mean

    def _shift_and_scale(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.stats.get("mean") is None:
            raise DataError(
                "the moments of the training split are missing: encode the training split as well "
                "(src/encode_vae.py splits=[train,...])"
            )
        names = ("mean", "std", "posterior_std")
        mean, std, posterior_std = (x.new_tensor(self.stats[name]) for name in names)
        return mean, torch.hypot(std, posterior_std)
