"""Places at which an id is chosen in the same way, and the ids of which one may come there.

    N places   V ids that may come   W width
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unimm.config.sampling import Choice
from unimm.generate.choose import choose, marks, places
from unimm.model.cache import sent
from unimm.model.unified import UnifiedModel

NEAR = 64
"""A gap of at most so many ids is computed along rather than cut out."""
RUNS = 8
"""The most slices of one head."""


class Allowed:
    """Ascending ids as columns of logits over slices of the head: its weights are never copied.

    only    the one id, where there is but one
    banned  columns of ids that lie between and are not allowed
    marks   int32 (V,): what noise knows the columns by
    """

    def __init__(self, ids: np.ndarray, model: UnifiedModel):
        device = model.device
        gaps = np.diff(ids) - 1
        cut = np.flatnonzero(gaps > NEAR)
        cut = np.sort(cut[np.argsort(gaps[cut], kind="stable")[::-1][:RUNS - 1]])
        first, last = ids[np.concatenate([[0], cut + 1]).astype(int)], ids[np.append(cut, len(ids) - 1).astype(int)]
        runs = tuple(slice(int(a), int(b) + 1) for a, b in zip(first, last))
        columns = np.concatenate([np.arange(run.start, run.stop) for run in runs])
        self.head, self.first = model.head(runs), runs[0].start if len(runs) == 1 else None
        self.only = int(ids[0]) if len(ids) == 1 else None
        banned = np.flatnonzero(~np.isin(columns, ids))
        self.banned = torch.from_numpy(banned).to(device) if len(banned) else None
        self.ids = torch.from_numpy(columns).to(device)
        self.marks = torch.from_numpy(marks(columns)).to(device)

    def logits(self, hidden: Tensor, weights: Tensor | None) -> Tensor:
        """float32 (N, V), as `UnifiedModel.head` gives them, -inf where an id is not allowed."""
        logits = self.head(hidden, weights)
        return logits if self.banned is None else logits.index_fill_(1, self.banned, -torch.inf)

    def of(self, columns: Tensor) -> Tensor:
        """The ids of columns."""
        return self.ids[columns] if self.first is None else columns + self.first


@dataclass(frozen=True, eq=False)
class Group:
    """Places of rows, counted row by row, t in each.

    items     which they are, int64 (N,); `spots` the same on the device
    hidden    where their states lie, int64 (N,) or (N, branches); None: all in order
    weights   float32 (N, branches) of guided ones
    number    of the set of ids
    """

    items: np.ndarray
    spots: Tensor
    hidden: Tensor | None
    weights: Tensor | None
    number: int
    allowed: Allowed
    how: Choice

    def logits(self, hidden: Tensor) -> Tensor | None:
        """float32 (N, V) from the states of all places; None where there is no choice."""
        if self.allowed.only is not None:
            return None
        return self.allowed.logits(hidden if self.hidden is None else hidden[self.hidden], self.weights)

    def ids(self, logits: Tensor | None, now: np.ndarray, row: np.ndarray, ahead: np.ndarray) -> Tensor:
        """An id from each row of logits (n, V), int64 (n,), by the noise of a `row` of `now` and a place behind it."""
        if logits is None:
            return torch.full((len(self.items),), self.allowed.only, device=self.spots.device)
        place = None if self.how.temperature == 0 else sent(
            places(now["seed"][row], now["written"][row] + ahead), logits.device)
        return self.allowed.of(choose(logits, self.how, place, self.allowed.marks))
