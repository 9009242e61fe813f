"""Tolerances of the matcher, and what becomes of a pair."""

from dataclasses import asdict, dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True, slots=True)
class MatcherSettings:
    """StructureMatcher's tolerances; figures taken with different ones are not comparable.

    Attributes:
        stol: Site tolerance, in units of (V/N)^(1/3), the free length per atom.
        ltol: Fractional tolerance on cell lengths.
        angle_tol: Tolerance on cell angles in degrees.
        primitive_cell: Whether both crystals are reduced to primitive cells first.
    """

    stol: float
    ltol: float
    angle_tol: float
    primitive_cell: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class UnreducedSettings(MatcherSettings):
    """Tolerances for matching without reduction to primitive cells."""

    primitive_cell: ClassVar[bool] = False


CDVAE = MatcherSettings(stol=0.5, ltol=0.3, angle_tol=10.0)
"""Those of CDVAE (Xie et al., ICLR 2022) and most papers since."""

PYMATGEN = MatcherSettings(stol=0.3, ltol=0.2, angle_tol=5.0)
"""pymatgen's defaults, stricter."""

UNREDUCED = UnreducedSettings(**asdict(CDVAE))
"""CDVAE's, without reduction to primitive cells: a copy of a non-primitive cell with displaced
atoms may reduce to another cell than the original. Then it does not match, however small the
displacements are."""

Status = Literal["matched", "unmatched", "timeout", "crashed", "error"]


@dataclass(frozen=True, slots=True)
class PairResult:
    """What became of one pair.

    Attributes:
        status: `matched` or `unmatched`; `timeout` if the limit ran out, `crashed` if the worker
            died, `error` if the prediction is missing or invalid or the matcher raised.
        rms: Root-mean-square displacement over (V/N)^(1/3), no unit; None unless matched.
        message: The reason, for the last three.
    """

    status: Status
    rms: float | None = None
    message: str = ""

    @property
    def matched(self) -> bool:
        return self.status == "matched"
