"""The ids of which one may come next, as columns of logits, over slices of the head: its weights are never copied."""

import numpy as np
import torch
from torch import Tensor

from unimm.generate.choose import marks
from unimm.model.unified import UnifiedModel

NEAR = 64
"""A gap of at most so many ids is computed along rather than cut out."""
RUNS = 8
"""The most slices of one head."""


class Allowed:
    """Ids (V',), ascending, within V columns; `marks` int32 (V,) is what noise knows the columns by."""

    def __init__(self, ids: np.ndarray, device: torch.device):
        gaps = np.diff(ids) - 1
        cut = np.flatnonzero(gaps > NEAR)
        cut = np.sort(cut[np.argsort(gaps[cut], kind="stable")[::-1][:RUNS - 1]])
        first, last = ids[np.concatenate([[0], cut + 1]).astype(int)], ids[np.append(cut, len(ids) - 1).astype(int)]
        self.runs = tuple(slice(int(a), int(b) + 1) for a, b in zip(first, last))
        columns = np.concatenate([np.arange(run.start, run.stop) for run in self.runs])
        self.only = int(ids[0]) if len(ids) == 1 else None
        banned = np.flatnonzero(~np.isin(columns, ids))
        self.banned = torch.from_numpy(banned).to(device) if len(banned) else None
        self.ids = torch.from_numpy(columns).to(device)
        self.marks = torch.from_numpy(marks(columns)).to(device)

    def logits(self, model: UnifiedModel, hidden: Tensor, weights: Tensor | None) -> Tensor:
        """float32 (N, V), as `UnifiedModel.logits` gives them, -inf where an id is not allowed."""
        logits = model.logits(hidden, self.runs, weights)
        return logits if self.banned is None else logits.index_fill_(1, self.banned, -torch.inf)

    def of(self, columns: Tensor) -> Tensor:
        """The ids of columns."""
        return columns + self.runs[0].start if len(self.runs) == 1 else self.ids[columns]
