"""Which elements a crystal has, and how many atoms of each: a prior over compositions.

A composition is a short sentence: elements in the order of the periodic table's columns, so metals
come before what they are bound to, each with the number of its atoms. A causal Transformer reads
what has been said so far and how many atoms are left, and says the next element and then its
number.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pymatgen.core import Element
from torch import Tensor, nn

from src.data.schema import CrystalBatch
from src.ldm_module.conditions import Conditions
from src.nn.transformer import segment_mean
from src.utils.config import build, to_plain
from src.utils.errors import UserError

MAX_ELEMENTS = 16  # different elements in one crystal


class Compositions(NamedTuple):
    """Compositions of B cells, each of at most L elements.

    Attributes:
        elements: (B, L) atomic numbers in the order of `order_of_elements`, then zeros.
        counts: (B, L) number of atoms of each, then zeros.
    """

    elements: Tensor
    counts: Tensor

    @property
    def num_atoms(self) -> Tensor:
        """(B,)."""
        return self.counts.sum(dim=1)

    @classmethod
    def of(cls, batch: CrystalBatch, max_num_elements: int) -> "Compositions":
        """The compositions of crystals with atomic numbers below `max_num_elements`."""
        order = order_of_elements(max_num_elements).to(batch.atom_types.device)
        counts = batch.atom_types.new_zeros(len(batch.num_atoms), max_num_elements)
        ones = torch.ones_like(batch.atom_types)
        counts.index_put_((batch.batch, batch.atom_types), ones, accumulate=True)
        counts = counts[:, order]
        present, columns = (counts > 0).sort(dim=1, descending=True, stable=True)
        length = int(present.sum(dim=1).max())
        present, columns = present[:, :length], columns[:, :length]
        return cls(order[columns] * present, counts.gather(1, columns))

    def trimmed(self) -> "Compositions":
        """The same compositions, with as few columns as they need."""
        length = int((self.elements > 0).sum(dim=1).max())
        return Compositions(self.elements[:, :length], self.counts[:, :length])

    def atom_types(self) -> Tensor:
        """(N,) atomic numbers, crystal after crystal."""
        return self.elements.flatten().repeat_interleave(self.counts.flatten())


@cache
def order_of_elements(max_num_elements: int) -> Tensor:
    """Atomic numbers below `max_num_elements`, by column of the periodic table and then from heavy
    to light, after a 0: (max_num_elements,).

    No property of the elements is measured for it, so it is the same with any release of pymatgen.
    """
    elements = [Element.from_Z(number) for number in range(1, min(max_num_elements, 119))]
    named = sorted(elements, key=lambda element: (element.group, -element.Z))
    rest = range(len(elements) + 1, max_num_elements)
    return torch.tensor([0, *(element.Z for element in named), *rest])


class CompositionModel(nn.Module):
    """Draws the composition of a cell, given its number of atoms and what is asked for.

    Args:
        d_model: width.
        nhead: attention heads.
        num_layers: layers.
        dim_feedforward: width of the feed-forward networks.
        dropout: while it is trained.
        max_num_elements: atomic numbers must be smaller.
        max_num_atoms: in one cell.
        conditions: what can be asked for. In a config, `d_model` is taken from above. None:
            nothing.

    Attributes:
        is_trained: (), 1 once it has seen a training set, else 0.
    """

    is_trained: Tensor

    def __init__(
        self,
        d_model: int = 128,
        nhead: int = 4,
        num_layers: int = 3,
        dim_feedforward: int = 512,
        dropout: float = 0.1,
        max_num_elements: int = 100,
        max_num_atoms: int = 256,
        conditions: Conditions | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.nhead = nhead
        self.num_layers = num_layers
        self.dim_feedforward = dim_feedforward
        self.dropout = dropout
        self.max_num_elements = max_num_elements
        self.max_num_atoms = max_num_atoms
        if isinstance(conditions, Mapping):
            conditions = build({**to_plain(conditions), "d_model": d_model}, Conditions)
        self.conditions = conditions or Conditions(d_model)

        sizes = max_num_atoms + 1
        self.element_embedder = nn.Embedding(max_num_elements, d_model)
        self.count_embedder = nn.Embedding(sizes, d_model)
        self.num_atoms_embedder = nn.Embedding(sizes, d_model)
        self.left_embedder = nn.Embedding(sizes, d_model)
        layer = nn.TransformerEncoderLayer(
            d_model, nhead, dim_feedforward, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(d_model)
        self.element_head = nn.Linear(d_model, max_num_elements)
        self.count_head = nn.Sequential(
            nn.Linear(2 * d_model, 2 * d_model), nn.GELU(), nn.Linear(2 * d_model, max_num_atoms)
        )
        self.register_buffer("is_trained", torch.tensor(0.0))

    def check(self, num_atoms: Tensor) -> None:
        """Reject cells that are too large.

        Raises:
            UserError: for such a cell; the message names the setting.
        """
        if len(num_atoms) and (largest := int(num_atoms.max())) > self.max_num_atoms:
            raise UserError(
                f"a cell has {largest} atoms, but the model of compositions knows cells of up to "
                f"{self.max_num_atoms}: train with a larger "
                "ldm_module.compositions.max_num_atoms"
            )

    def forward(self, compositions: Compositions, conditions: Sequence[Tensor]) -> Tensor:
        """Minus the log of the probability of each composition, given its number of atoms: (B,).

        Args:
            compositions: B of them.
            conditions: (B, width) of each condition, NaN where nothing is asked for.
        """
        elements, counts = compositions
        hidden, left = self._read(compositions, compositions.num_atoms, conditions)
        hidden, left = hidden[:, :-1], left[:, :-1]
        before = F.pad(elements, (1, 0))[:, :-1]
        next_element = self._element_logits(hidden, before).log_softmax(-1)
        next_count = self._count_logits(hidden, elements, left).log_softmax(-1)
        said = next_element.gather(-1, elements[..., None]).squeeze(-1)
        said = said + next_count.gather(-1, (counts - 1).clamp(min=0)[..., None]).squeeze(-1)
        return -torch.where(elements > 0, said, 0.0).sum(dim=1)

    @torch.no_grad()
    def sample(
        self,
        num_atoms: Tensor,
        uniform: Tensor,
        conditions: Sequence[Tensor] | None = None,
        cfg_scale: float = 1.0,
        temperature: float = 1.0,
    ) -> Compositions:
        """Draw compositions.

        A number of elements or a chemical system that is asked for is met exactly, the other
        conditions as far as guidance goes.

        Args:
            num_atoms: (B,).
            uniform: (B, MAX_ELEMENTS, 2) uniformly distributed in [0, 1).
            conditions: as for `forward`; None: nothing.
            cfg_scale: see `LDMModule.sample`.
            temperature: of the numbers of atoms: below 1, the likely ones become more likely.

        Raises:
            UserError: if a cell has fewer atoms than elements, or too many atoms.
        """
        self.check(num_atoms)
        nothing = self.conditions.nothing(len(num_atoms))
        asked = nothing if conditions is None or cfg_scale == 0 else conditions
        number, system = self._demand(asked, num_atoms)
        followed = [asked]
        if cfg_scale not in (0, 1) and self.conditions.names:
            followed.append(nothing)
        order = order_of_elements(self.max_num_elements).to(num_atoms.device)
        rank = order.argsort()
        num_later = self.max_num_elements - 1 - rank  # of elements after each in the order
        count_of = torch.arange(1, self.max_num_atoms + 1, device=num_atoms.device)
        done = Compositions(*(num_atoms.new_zeros(len(num_atoms), 0) for _ in range(2)))
        for step in range(MAX_ELEMENTS):
            left = num_atoms - done.num_atoms
            if not bool((left > 0).any()):
                break
            before = F.pad(done.elements, (1, 0))[:, -1]
            to_come = (number - step - 1).clamp(min=0)
            hidden = [self._read(done, num_atoms, values)[0][:, -1] for values in followed]

            logits = _guide([self._element_logits(each, before) for each in hidden], cfg_scale)
            logits = logits.masked_fill(num_later < to_come[:, None], -torch.inf)
            unused = system & (rank > rank[before][:, None])
            first = torch.where(unused, rank, len(rank)).argmin(dim=1)
            not_next = unused.any(dim=1, keepdim=True) & (rank != rank[first][:, None])
            element = _draw(logits.masked_fill(not_next, -torch.inf), uniform[:, step, 0])

            logits = _guide([self._count_logits(each, element, left) for each in hidden], cfg_scale)
            is_last = (number == step + 1) | (step == MAX_ELEMENTS - 1)
            least = torch.where(is_last, left, 1)[:, None]
            out = (count_of > (left - to_come)[:, None]) | (count_of < least)
            logits = (logits / temperature).masked_fill(out, -torch.inf)
            count = 1 + _draw(logits, uniform[:, step, 1])

            more = left > 0
            done = Compositions(
                torch.cat([done.elements, (element * more)[:, None]], dim=1),
                torch.cat([done.counts, (count * more)[:, None]], dim=1),
            )
        return done

    def complete(
        self,
        batch: CrystalBatch,
        uniform: Tensor,
        conditions: Sequence[Tensor],
        cfg_scale: float = 1.0,
        temperature: float = 1.0,
    ) -> CrystalBatch:
        """Draw the atom types of crystals in which they are 0; those of others stay.

        Args:
            batch: `num_atoms` and `atom_types`.
            uniform, conditions, cfg_scale, temperature: as for `sample`.

        Raises:
            UserError: as `sample`, and for a crystal in which only some types are 0.
        """
        known = batch.atom_types > 0
        given = segment_mean(known.float()[:, None], batch.batch, batch.num_atoms)
        if bool(given.frac().any()):
            i = int(given.frac().argmax())
            raise UserError(
                f"crystal {i} has atom types of which some are 0: give all of them, or 0 for all"
            )
        if bool(known.all()):
            return batch
        num_atoms = torch.where(given[:, 0] > 0, 1, batch.num_atoms)
        asked = [torch.where(given > 0, torch.nan, values) for values in conditions]
        drawn = self.sample(num_atoms, uniform, asked, cfg_scale, temperature)
        types = drawn._replace(counts=torch.where(given > 0, 0, drawn.counts)).atom_types()
        return batch.replace(atom_types=batch.atom_types.masked_scatter(~known, types))

    def _demand(self, asked: Sequence[Tensor], num_atoms: Tensor) -> tuple[Tensor, Tensor]:
        """How many elements are asked for, (B,), 0: any number, and which, (B, E) bool, none: any.

        Raises:
            UserError: if a cell cannot have that many.
        """
        number = torch.zeros_like(num_atoms)
        system = number.new_zeros(len(number), self.max_num_elements, dtype=torch.bool)
        for name, values in zip(self.conditions.names, asked, strict=True):
            given = values.isfinite().all(dim=1)
            if name == "num_elements":
                wanted = values[:, 0].nan_to_num().round().long()
            elif name == "chemical_system":
                system = values.nan_to_num() > 0
                wanted = system.sum(dim=1)
            else:
                continue
            if bool((given & (wanted < 1)).any()) or int(wanted.max()) > MAX_ELEMENTS:
                raise UserError(f"a crystal has from 1 to {MAX_ELEMENTS} elements")
            if bool((given & (number > 0) & (number != wanted)).any()):
                raise UserError("num_elements is not the number of elements of chemical_system")
            number = torch.where(given, wanted, number)
        if bool((too_small := number > num_atoms).any()):
            i = int(too_small.long().argmax())
            raise UserError(
                f"a crystal of {int(num_atoms[i])} atoms cannot have {int(number[i])} elements: "
                "set num_atoms to a larger number"
            )
        return number, system

    def _read(
        self, done: Compositions, num_atoms: Tensor, conditions: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """What the Transformer makes of the beginning of a composition and after each element,
        (B, 1 + L, D), and how many atoms are left there, (B, 1 + L)."""
        left = torch.cat([num_atoms[:, None], num_atoms[:, None] - done.counts.cumsum(1)], dim=1)
        said = self.element_embedder(done.elements) + self.count_embedder(done.counts)
        whole = self.num_atoms_embedder(num_atoms)
        asked = self.conditions(conditions)
        whole = whole if asked is None else whole + asked
        tokens = F.pad(said, (0, 0, 1, 0)) + self.left_embedder(left) + whole[:, None]
        length = tokens.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        return self.norm(self.transformer(tokens, mask=later)), left

    def _element_logits(self, hidden: Tensor, before: Tensor) -> Tensor:
        """Of the next element, (..., E), which comes later in the order than the one `before`."""
        rank = order_of_elements(self.max_num_elements).to(hidden.device).argsort()
        earlier = rank <= rank[before][..., None]
        earlier &= ~earlier.all(dim=-1, keepdim=True)  # where nothing follows, to avoid NaN
        return self.element_head(hidden).masked_fill(earlier, -torch.inf)

    def _count_logits(self, hidden: Tensor, element: Tensor, left: Tensor) -> Tensor:
        """Of the numbers 1 to `max_num_atoms` of an element, (..., `max_num_atoms`).

        They are at most the number of atoms that are left, and for the last element of the order,
        all of these.
        """
        logits = self.count_head(torch.cat([hidden, self.element_embedder(element)], dim=-1))
        left = left.clamp(min=1)  # where nothing follows, to avoid NaN
        count = torch.arange(1, self.max_num_atoms + 1, device=hidden.device)
        is_last = element == order_of_elements(self.max_num_elements)[-1]
        least = torch.where(is_last, left, 1)
        impossible = (count > left[..., None]) | (count < least[..., None])
        return logits.masked_fill(impossible, -torch.inf)


def _guide(logits: Sequence[Tensor], scale: float) -> Tensor:
    """Logits with guidance, from those with what is asked for and, if `scale` needs them, without.

    Those of what is impossible stay minus infinity.
    """
    asked, *without = logits
    if not without:
        return asked
    return torch.where(asked.isinf(), asked, without[0] + scale * (asked - without[0]))


def _draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw an index (B,) from logits (B, K), given (B,) uniformly distributed in [0, 1).

    Where nothing is possible, which are the crystals that are complete, it is 0.
    """
    shares = logits.softmax(dim=-1).nan_to_num().cumsum(dim=-1)
    target = uniform.clamp(max=1 - 1e-6)[:, None] * shares[:, -1:]
    return ((shares <= target).sum(dim=-1) % logits.shape[-1]).to(torch.int64)
