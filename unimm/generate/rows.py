"""What the decode loop keeps of its rows, and of what they do in a step.

    R rows   t places in each
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from unimm.config.sampling import Choice
from unimm.generate.allowed import Allowed
from unimm.generate.request import Request
from unimm.sample import Sequence

ROW = np.dtype([("state", "i8"), ("codes", "i8"), ("written", "i8"), ("seed", "u8"), ("left", "i8"), ("steps", "i8"),
                ("window", "i8"), ("text", "i8"), ("image", "i8"), ("arity", "i8"), ("images", "i8"), ("fresh", "?")])
"""state   of the automaton, behind the last id        codes   of its image that stand before the last id
written   ids so far; left: of text that may still be   text, image   numbers of the settings they are chosen by
arity   branches of the row   images   that it may still write   fresh   some branch has not read its prompt yet"""


@dataclass(eq=False)
class Live:
    """A row's request, and prompts of its branches that are still to be read."""

    request: Request
    unread: list[tuple[int, Sequence]]
    weights: tuple[float, ...] = (1.0,)


@dataclass(frozen=True, eq=False)
class Group:
    """Places at which an id is chosen in the same way.

    items     which of the R * t places, int64 (N,)
    hidden    where their states lie, int64 (N,) or (N, branches); None: all in order
    weights   float32 (N, branches) of guided ones
    """

    items: np.ndarray
    hidden: Tensor | None
    weights: Tensor | None
    number: int
    allowed: Allowed
    how: Choice


@dataclass(eq=False)
class Path:
    """What rows read in a step: the state behind each place, int64 (R, t), and whether a row reads so far, bool (R, t);
    the groups of these places, once they are made."""

    states: np.ndarray
    valid: np.ndarray
    groups: list[Group] | None = None

    def __post_init__(self):
        self.counts = self.valid.sum(1)
        self.last = self.states[np.arange(len(self.states)), self.counts - 1]
