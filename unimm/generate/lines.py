"""What rows under way hold.

Lines: rows of the cache in use, which belongs to whom, and what each has read.

    L lines, always the first L rows of the cache   t positions read   W width

What rows have drawn of their images where one id stands for it: several codes a position, or a latent.

    R rows   kept positions of the image under way   C codes a position, or channels
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from unimm.generate.choose import Group, choose, marks, normal, places
from unimm.generate.request import Request
from unimm.model.cache import RowCache, sent
from unimm.model.image_input import Written
from unimm.model.image_output import DepthHead, FlowHead
from unimm.model.unified import UnifiedModel
from unimm.sample import Sequence

AT_ONCE = 16_384
"""Positions of prompts in one forward, which bounds its memory."""


class Lines:
    """owner, branch, length   int64 (L,): the row that a line belongs to, which of its branches, the positions read"""

    def __init__(self, model: UnifiedModel):
        self.model, self.image_input = model, model.image_input  # a module's own attributes take ten times as long
        self.table = model.backbone.get_input_embeddings()
        self.cache = RowCache(0, 0, model.device)
        self.owner, self.branch, self.length = (np.zeros(0, np.int64) for _ in range(3))
        self._most = 0  # at least what the longest line has read

    def __len__(self) -> int:
        return len(self.owner)

    def read(self, ids: Tensor, first: int = 0, codes: np.ndarray | None = None, slots=(),
             drawn: Tensor | None = None) -> Tensor:
        """Hidden states (n, t, W) of ids (n, t) behind what lines from `first` on have read; `codes` (n,) counts those
        of an image under way, `drawn` (n, kept, C) is what they hold. The lines' lengths stay as they are."""
        n, t = ids.shape
        start = self.length[first:first + n]
        self._most += t
        if self._most > self.cache.capacity:
            self._most = int(self.length.max()) + t
            self.cache.reserve(0, self._most)
        before = sent(codes, ids.device) if codes is not None and self.image_input.counts else None
        written = drawn if drawn is None else Written(drawn, sent(codes.clip(0, drawn.shape[1] - 1), ids.device))
        embedded, _ = self.image_input(self.table, ids, before, slots, written)
        return self.model.read(embedded, start, self.cache, first)

    def begin(self, prompts: list[tuple[int, int, Sequence]], room: int) -> Tensor:
        """Read prompts, each with its row and branch, into lines of their own that may need `room` positions in all;
        their last hidden states (lines, W), in order of the lines.

        The same ids are read once and copied.
        """
        first: dict[bytes, list[tuple[int, int, Sequence]]] = {}
        for n, prompt in enumerate(sorted(prompts, key=lambda prompt: len(prompt[2]))):
            key = b"%d" % n if prompt[2].slots else prompt[2].ids.tobytes()
            first.setdefault(key, []).append(prompt)
        alike, at = list(first.values()), len(self)
        ordered = [group[0] for group in alike] + [prompt for group in alike for prompt in group[1:]]
        rows, branches, sequences = zip(*ordered)
        self.cache.reserve(at + len(ordered), room)
        self.owner, self.branch = np.append(self.owner, rows), np.append(self.branch, branches)
        self.length = np.append(self.length, np.zeros(len(ordered), np.int64))
        hidden = self._prompts(sequences[:len(alike)], at)
        self.length[at:] = [len(sequence) for sequence in sequences]
        self._most = max(self._most, int(self.length.max()))
        copies = [n for n, group in enumerate(alike) for _ in group[1:]]
        for target, source in enumerate(copies, at + len(alike)):
            self.cache.move(at + source, target, int(self.length[target]))
        return hidden if not copies else hidden[[*range(len(alike)), *copies]]

    def _prompts(self, sequences: tuple[Sequence, ...], first: int) -> Tensor:
        """The last hidden states of whole prompts, which ascend in length, in lines from `first` on."""
        if len(sequences) > 1 and len(sequences) * len(sequences[-1]) > AT_ONCE:
            half = len(sequences) // 2
            return torch.cat([self._prompts(sequences[:half], first), self._prompts(sequences[half:], first + half)])
        ids = pad_sequence([torch.from_numpy(sequence.ids).long() for sequence in sequences], batch_first=True)
        slots = tuple((row, slot) for row, sequence in enumerate(sequences) for slot in sequence.slots)
        hidden = self.read(ids.to(self.cache.device), first, None, slots)
        return hidden[[*range(len(sequences))], [len(sequence) - 1 for sequence in sequences]]

    def drop(self, gone: np.ndarray) -> None:
        """Free the lines where `gone` bool (L,) holds; the last ones move into their places."""
        kept = len(self) - np.count_nonzero(gone)
        holes, movers = np.flatnonzero(gone[:kept]), kept + np.flatnonzero(~gone[kept:])
        for target, source in zip(holes, movers):
            self.cache.move(int(source), int(target), int(self.length[source]))
        for held in (self.owner, self.branch, self.length):
            held[holes] = held[movers]
        self.owner, self.branch, self.length = self.owner[:kept], self.branch[:kept], self.length[:kept]


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

    def draw(self, group: Group, hidden: Tensor, now: np.ndarray, row: np.ndarray, index: np.ndarray) -> None:
        """Draw position `index` of the images of rows `row` where the group's id stands for it, by the noise of each
        row and place."""
        if not self.head or group.allowed.only != self.head.start:
            return
        hidden, weights = hidden if group.hidden is None else hidden[group.hidden], group.weights
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
