"""The latents of a data set, as `src/encode_vae.py` writes them and a latent model reads them.

A folder of latents holds a `{train,val,test}.safetensors` for each split, memory-mapped when read,
and `stats.json`, which describes them and has the moments of each channel over the training split.
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
_CHUNK = 2**16  # atoms at a time, where float64 copies are made


@dataclass(frozen=True, slots=True)
class LatentBatch:
    """The posteriors of the N atoms of B crystals.

    Args:
        mean, logvar: (N, Z) float32.
        atom_types: (N,) int64 atomic numbers.
        num_atoms: (B,) int64.
        batch: (N,) int64, crystal of each atom.
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
        """The means: (N, Z)."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw from each posterior: (N, Z)."""
        noise = torch.randn(
            self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype
        )
        return self.mean + (0.5 * self.logvar).exp() * noise

    def encoded(self, x: Tensor | None = None) -> dict[str, Any]:
        """What `VAEModule.decode` takes, with the latents `x` (N, Z), or the means."""
        return {
            "x": self.mean if x is None else x,
            "num_atoms": self.num_atoms,
            "batch": self.batch,
            "max_num_atoms": self.max_num_atoms,
            "atom_types": self.atom_types,
        }

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "LatentBatch":
        """The batch on another device; this one stays where it is."""
        names = ("mean", "logvar", "atom_types", "num_atoms", "batch")
        moved = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in names}
        y = {name: value.to(device, non_blocking=non_blocking) for name, value in self.y.items()}
        return replace(self, **moved, y=y)


class LatentDataset(Dataset):
    """The posteriors of the atoms of many crystals in flat tensors.

    `CrystalLoader(latents, EpochSampler(len(latents), batch_size, shuffle=True))` iterates over
    it in batches.

    Args:
        mean, logvar: (N, Z) float32.
        atom_types: (N,) atomic numbers.
        num_atoms: (B,).
        ids: B names; their numbers by default.
        y: properties by name, (B,) each.
        stats: the content of `stats.json`, which `normalize` needs.
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
        """Open a split of a folder of latents; the large tensors stay on disk until read.

        Args:
            path: the folder, or the file of a split in it.
            split: `train`, `val` or `test`, where `path` is a folder.

        Raises:
            DataError: if there is no such split or its file cannot be used.
        """
        path = Path(path).expanduser()
        folder, file = (
            (path, path / f"{split}.safetensors") if path.is_dir() else (path.parent, path)
        )
        if not file.is_file():
            found = sorted(other.stem for other in folder.glob("*.safetensors"))
            raise DataError(
                f"There are no latents {file} (the splits there: {', '.join(found) or 'none'}): "
                "write them with src/encode_vae.py"
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
                f"{file} is damaged or holds no latents ({error}): write it again with "
                "src/encode_vae.py"
            ) from error

    def save(self, path: Path) -> None:
        """Write what `load` reads, but for the stats."""
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
        """The crystals at `indices` ((b,) int64), in that order."""
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
        """Moments of each channel over all atoms, computed in float64.

        Returns:
            `mean` and `std` of the posteriors' means, and `posterior_std`, the root of the mean
            variance of the posteriors.
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
        """Latents (..., Z) shifted and scaled by the moments of the training split.

        Over that split each channel of the posteriors' samples then has mean 0 and variance 1, by
        the law of total variance. (The means alone would not do for the scale: those of a channel
        that carries nothing hardly vary.)

        Raises:
            DataError: if the folder has no such moments.
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
                "there are no moments of the training split beside these latents: encode it with "
                "them (src/encode_vae.py splits=[train,...])"
            )
        names = ("mean", "std", "posterior_std")
        mean, std, posterior_std = (x.new_tensor(self.stats[name]) for name in names)
        return mean, torch.hypot(std, posterior_std)
