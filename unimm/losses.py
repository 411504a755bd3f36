"""What an objective hands to the training loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Losses:
    """The loss of one batch on one rank.

    total   scalar with a graph: what is minimised, a *mean* over this rank's batch
    parts   name -> (sum, count), scalars without a graph: "text" and "image" stay apart, and their
            averages over steps and ranks are weighted by what was counted
    weight  what `total` is a mean over (its denominator). Ranks that hold unequal amounts are weighted
            by it, so that two ranks give the gradient of one process on the whole batch
    tokens  how much was read (tokens or images), for the rate
    """

    total: Tensor
    parts: dict[str, tuple[Tensor | float, Tensor | float]] = field(default_factory=dict)
    weight: Tensor | float = 1.0
    tokens: int = 0
