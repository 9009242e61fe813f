"""What a denoiser can be asked for beyond the number of atoms: properties and chemical systems.

A condition maps values, one row per crystal, to vectors that are added to the embedding of the
time. A row of NaN means that nothing is asked for.
"""

import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from ase.data import atomic_masses, atomic_numbers
from torch import Tensor, nn

from src.data.schema import CrystalBatch
from src.nn.embedding import MLPEmbedding
from src.nn.transformer import segment_mean
from src.utils.errors import UserError

AMU_PER_CUBIC_ANGSTROM = 1.66053906660  # 1 u/Å^3 in g/cm^3 (CODATA 2018)


def density(batch: CrystalBatch) -> Tensor:
    """Mass density in g/cm^3: (B,)."""
    masses = torch.as_tensor(atomic_masses, device=batch.num_atoms.device)[batch.atom_types]
    mean = segment_mean(masses[:, None], batch.batch, batch.num_atoms).squeeze(1)
    return AMU_PER_CUBIC_ANGSTROM * mean / volume_per_atom(batch)


def volume_per_atom(batch: CrystalBatch) -> Tensor:
    """In Å^3: (B,)."""
    return batch.volumes / batch.num_atoms


def num_elements(batch: CrystalBatch) -> Tensor:
    """How many elements each crystal has: (B,)."""
    return elements_in(batch, 1 + int(max(atomic_numbers.values()))).sum(dim=1)


COMPUTED: Mapping[str, Callable[[CrystalBatch], Tensor]] = {
    "density": density,
    "volume_per_atom": volume_per_atom,
    "num_elements": num_elements,
}
"""Properties that follow from a crystal; all others come with the data, as `CrystalBatch.y`."""


OF_COMPOSITION = ("num_elements",)
"""Properties that follow from the composition alone, as the chemical system does."""


def check_beyond_composition(asked: Iterable[str]) -> None:
    """Raise a `UserError` for what cannot be asked for in addition to a composition."""
    if settled := sorted({*OF_COMPOSITION, "chemical_system"} & set(asked)):
        raise UserError(
            f"the compositions that are given settle {', '.join(settled)}: leave out either the "
            "compositions or these conditions"
        )


def beyond_composition(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of those of some `Conditions` that do not follow from the composition."""
    properties = [name for name in config.get("properties", ()) if name not in OF_COMPOSITION]
    return {**config, "properties": properties, "chemical_system": False}


def elements_in(batch: CrystalBatch, size: int) -> Tensor:
    """Which elements each crystal has: (B, size), 1 for those and 0 for the others."""
    found = torch.zeros(len(batch.num_atoms), size, device=batch.num_atoms.device)
    found[batch.batch, batch.atom_types] = 1.0
    return found


class Condition(nn.Module):
    """One thing that can be asked for.

    Attributes:
        name: under which it is asked for.
        width: numbers per crystal.
    """

    name: str
    width: int
    nothing: nn.Parameter

    @abstractmethod
    def values(self, batch: CrystalBatch) -> Tensor:
        """What training crystals would have been asked for: (B, width), NaN where unknown."""

    @abstractmethod
    def parse(self, asked: Any) -> Tensor:
        """A request by a user as values: (width,).

        Raises:
            UserError: if it makes no sense.
        """

    @abstractmethod
    def embed(self, values: Tensor) -> Tensor:
        """(B, width), without NaN, to (B, d_model)."""

    def fit(self, values: Tensor) -> None:
        """See the values (B, width) of the training set before training starts."""

    def forward(self, values: Tensor) -> Tensor:
        """(B, width) to (B, d_model); a row of NaN to `self.nothing`."""
        missing = values.isnan().any(dim=1, keepdim=True)
        embedded = self.embed(torch.where(missing, 0.0, values))
        return torch.where(missing, self.nothing.to(embedded.dtype), embedded)


class Property(Condition):
    """A number, standardized by its mean and standard deviation in the training set.

    Args:
        name: one of `COMPUTED`, or a property of the data (`data.properties`).
        d_model: width of the denoiser.
    """

    width = 1
    mean: Tensor
    std: Tensor

    def __init__(self, name: str, d_model: int) -> None:
        super().__init__()
        self.name = name
        self.d_model = d_model
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("std", torch.tensor(1.0))
        self.embedder = MLPEmbedding(1, d_model)
        self.nothing = nn.Parameter(torch.zeros(d_model))

    def values(self, batch: CrystalBatch) -> Tensor:
        if self.name in COMPUTED:
            return COMPUTED[self.name](batch).float()[:, None]
        given = (batch.y or {}).get(self.name)
        if given is None:
            raise UserError(
                f"the condition {self.name!r} is not among the properties of the data "
                f"({', '.join(batch.y or {}) or 'none'}): name it in data.properties; what is "
                f"computed from the crystals is {', '.join(COMPUTED)}"
            )
        return given.float()[:, None]

    def parse(self, asked: Any) -> Tensor:
        try:
            value = float(asked)
        except (TypeError, ValueError):
            raise UserError(f"{self.name} must be a number, not {asked!r}") from None
        return torch.tensor([value])

    def fit(self, values: Tensor) -> None:
        known = values[values.isfinite()]
        if not len(known):
            raise UserError(f"the condition {self.name!r} is known of no training crystal")
        self.mean.fill_(known.mean())
        self.std.fill_(known.std(correction=0).clamp(min=1e-6))

    def embed(self, values: Tensor) -> Tensor:
        return self.embedder((values - self.mean) / self.std)


class ChemicalSystem(Condition):
    """The set of elements of a crystal.

    Args:
        d_model: width of the denoiser.
        max_num_elements: atom types in the embedding; atomic numbers must be smaller.
    """

    name = "chemical_system"

    def __init__(self, d_model: int, max_num_elements: int = 100) -> None:
        super().__init__()
        self.d_model = d_model
        self.max_num_elements = max_num_elements
        self.width = max_num_elements
        self.embedder = MLPEmbedding(max_num_elements, d_model)
        self.nothing = nn.Parameter(torch.zeros(d_model))

    def values(self, batch: CrystalBatch) -> Tensor:
        return elements_in(batch, self.max_num_elements)

    def parse(self, asked: Any) -> Tensor:
        symbols = re.split(r"[-,\s]+", asked) if isinstance(asked, str) else list(asked)
        values = torch.zeros(self.width)
        for symbol in symbols:
            number = atomic_numbers.get(symbol, 0)
            if not 0 < number < self.width:
                raise UserError(
                    f"chemical_system={asked!r}: {symbol!r} is no element that the model knows; "
                    "write it like Na-Cl"
                )
            values[number] = 1.0
        return values

    def embed(self, values: Tensor) -> Tensor:
        return self.embedder(values)


class Conditions(nn.Module):
    """All that a denoiser can be asked for.

    Args:
        d_model: width of the denoiser.
        properties: names of the properties, see `Property`.
        chemical_system: whether a set of elements can be asked for.
        max_num_elements: see `ChemicalSystem`.

    Raises:
        UserError: if a property is named twice.
    """

    def __init__(
        self,
        d_model: int,
        properties: Sequence[str] = (),
        chemical_system: bool = False,
        max_num_elements: int = 100,
    ) -> None:
        super().__init__()
        if len(set(properties)) < len(properties):
            raise UserError(f"conditions.properties has a name twice: {list(properties)}")
        self.d_model = d_model
        self.properties = list(properties)
        self.chemical_system = chemical_system
        self.max_num_elements = max_num_elements
        parts: list[Condition] = [Property(name, d_model) for name in properties]
        if chemical_system:
            parts.append(ChemicalSystem(d_model, max_num_elements))
        self.parts = nn.ModuleList(parts)

    @property
    def each(self) -> list[Condition]:
        return cast(list[Condition], list(self.parts))

    @property
    def names(self) -> list[str]:
        return [part.name for part in self.each]

    def values(self, batch: CrystalBatch) -> list[Tensor]:
        """What training crystals would have been asked for: (B, width) of each condition."""
        return [part.values(batch) for part in self.each]

    def nothing(self, num_crystals: int) -> list[Tensor]:
        """The values of a request for nothing."""
        device = next(self.parameters(), torch.empty(0)).device
        return [
            torch.full((num_crystals, part.width), torch.nan, device=device) for part in self.each
        ]

    def parse(self, asked: Mapping[str, Any], num_crystals: int) -> list[Tensor]:
        """A request as values.

        Args:
            asked: by name, one for all crystals or a list of one for each; None: nothing.

        Raises:
            UserError: for a request that makes no sense; the message names it.
        """
        if unknown := set(asked) - set(self.names):
            known = ", ".join(self.names) or "none: it was trained without conditions"
            raise UserError(f"this model knows no condition {sorted(unknown)}; it knows {known}")
        values = self.nothing(num_crystals)
        for part, value in zip(self.each, values, strict=True):
            wanted = asked.get(part.name)
            each = isinstance(wanted, (list, tuple, Tensor)) and len(wanted) == num_crystals
            requests = list(wanted) if each else [wanted] * num_crystals  # type: ignore[arg-type]
            for i, request in enumerate(requests):
                if request is not None:
                    value[i] = part.parse(request)
        return values

    def forward(self, values: Sequence[Tensor]) -> Tensor | None:
        """(B, d_model), or None if there are no conditions."""
        embedded = [part(value) for part, value in zip(self.each, values, strict=True)]
        return torch.stack(embedded).sum(0) if embedded else None


def of_some(asked: Mapping[str, Any], indices: Tensor, num_crystals: int) -> dict[str, Any]:
    """What is asked of some of the crystals, given as for `Conditions.parse`."""
    each = (list, tuple, Tensor)
    return {
        name: [value[i] for i in indices.tolist()]
        if isinstance(value, each) and len(value) == num_crystals
        else value
        for name, value in asked.items()
    }


def drop(values: Sequence[Tensor], uniform: Tensor, share: float) -> list[Tensor]:
    """Hide conditions of some crystals, so that one denoiser learns to do with and without.

    Args:
        values: (B, width) of each of C conditions.
        uniform: (B, 1 + C) uniformly distributed in [0, 1).
        share: how often all of them are hidden; of the rest, how often each is.
    """
    everything = uniform[:, 0] < share
    hidden = [everything | (each < share) for each in uniform[:, 1:].unbind(1)]
    return [v.masked_fill(h[:, None], torch.nan) for v, h in zip(values, hidden, strict=True)]
