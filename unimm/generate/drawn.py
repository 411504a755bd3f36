"""What rows have drawn of their images where one id stands for it: several codes a position, or a latent.

    R rows   kept positions of the image under way   C codes a position, or channels
"""

import numpy as np
import torch
from torch import Tensor

from unimm.generate.choose import Group, choose, marks, normal, places
from unimm.generate.request import Request
from unimm.model.cache import sent
from unimm.model.image_output import DepthHead, FlowHead
from unimm.model.unified import UnifiedModel


class Drawn:
    """`values` (R, kept, C) follow the decoder's rows; `head` is None, and all else does nothing, where ids say it."""

    def __init__(self, model: UnifiedModel):
        self.head = model.image_output if isinstance(model.image_output, DepthHead | FlowHead) else None
        self._unread: list[tuple[np.ndarray, Tensor]] = []
        if self.head:
            self.values = torch.zeros(0, self.head.keeps, self.head.depth, dtype=self.head.dtype, device=model.device)

    def of(self, rows: np.ndarray) -> Tensor | None:
        """What some rows hold, (n, kept, C)."""
        return self.values[sent(rows, self.values.device)] if self.head else None

    def begin(self) -> None:
        """One more row."""
        if self.head:
            self.values = torch.cat([self.values, self.values.new_zeros(1, *self.values.shape[1:])])

    def keep(self, rows: np.ndarray) -> None:
        """Go on with some of the rows."""
        if self.head:
            self.values = self.of(rows)

    def draw(self, group: Group, hidden: Tensor, now: np.ndarray, row: np.ndarray, index: np.ndarray) -> None:
        """Draw position `index` of the images of rows `row` where the group's id stands for it, by the noise of each
        row and place."""
        if not self.head or group.allowed.only != self.head.start:
            return
        hidden = hidden if group.hidden is None else hidden[group.hidden]
        weights = group.weights
        if weights is None:
            hidden, weights = hidden[:, None], torch.ones(len(hidden), 1, device=hidden.device)
        place = sent(places(now["seed"][row], now["written"][row]), hidden.device)

        def mark(first: int, n: int) -> Tensor:
            return torch.from_numpy(marks(np.arange(first, first + n))).to(hidden.device)

        if isinstance(self.head, FlowHead):
            made = self.head.draw(hidden, weights, normal(place, mark(0, self.head.depth)) * group.how.temperature)
        else:
            made = self.head.draw(hidden, weights, lambda logits, first: choose(
                logits, group.how, place, mark(first, logits.shape[1])))
        self.values[sent(row, made.device), sent(np.minimum(index, self.head.keeps - 1), made.device)] = made
        self._unread.append((row, made))

    def see(self, requests: list[Request]) -> None:
        """Bring what the host has not read yet into the rows' requests."""
        for rows, made in self._unread:
            for row, values in zip(rows.tolist(), made.numpy(force=True)):
                requests[row].drawn.append(values)
        self._unread.clear()
