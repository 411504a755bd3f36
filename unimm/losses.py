"""What an objective hands to the training loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Losses:
    """The loss of one forward on one rank.

    total   scalar with a graph: the *sum* over what is learned, each by its weight. The loop divides it by the weight
            of the whole step (`Weighs.weigh`), so that any split over forwards and ranks gives the same gradient
    parts   name -> (sum, count), scalars without a graph: "text" and "image" stay apart, and their
            averages over steps and ranks are weighted by what was counted
    """

    total: Tensor
    parts: dict[str, tuple[Tensor | float, Tensor | float]] = field(default_factory=dict)


class Weight(NamedTuple):
    """learned: the weights of what a batch supervises, added up; read: how many tokens or images it reads."""

    learned: float
    read: int


class Weighs(Protocol):
    """What the loop asks of a module it trains, beside its forward(batch) -> Losses."""

    def weigh(self, batch) -> Weight:
        """The weight of a batch still on the host (numpy arrays), known before its forward."""
