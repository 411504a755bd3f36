"""Rows of the cache in use: which belongs to whom, and what each has read.

    L lines, always the first L rows of the cache   t positions read   W width
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unimm.model.cache import RowCache, sent
from unimm.model.image_input import Written
from unimm.model.unified import UnifiedModel
from unimm.sample import Sequence

AT_ONCE = 16_384
"""Positions of prompts in one forward, which bounds its memory."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a branch of a row begins with, and how many positions it may need in all."""

    row: int
    branch: int
    sequence: Sequence
    room: int


class Lines:
    """owner, branch, length   int64 (L,): the row that a line belongs to, which of its branches, the positions read"""

    def __init__(self, model: UnifiedModel, capacity: int):
        self.model, self.image_input = model, model.image_input  # a module's own attributes take ten times as long
        self.table = model.backbone.get_input_embeddings()
        self.cache = RowCache(0, capacity, model.device)
        self.owner, self.branch, self.length = (np.zeros(0, np.int64) for _ in range(3))
        self._most = 0  # at least what the longest line has read

    def __len__(self) -> int:
        return len(self.owner)

    def of(self, rows: int) -> np.ndarray:
        """The line of each branch of each row, int64 (rows, most branches)."""
        lines = np.zeros((rows, int(self.branch.max(initial=0)) + 1), np.int64)
        lines[self.owner, self.branch] = np.arange(len(self))
        return lines

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
        written = None
        if drawn is not None:
            written = Written(drawn, sent(codes.clip(0, drawn.shape[1] - 1), ids.device))
        embedded, _ = self.image_input(self.table, ids, before, slots, written)
        return self.model.read(embedded, start, self.cache, first)

    def begin(self, prompts: list[Prompt]) -> Tensor:
        """Read prompts into lines of their own; their last hidden states (lines, W), in order of the lines.

        The same ids are read once and copied.
        """
        first: dict[bytes, list[Prompt]] = {}
        for n, prompt in enumerate(sorted(prompts, key=lambda p: len(p.sequence))):
            key = b"%d" % n if prompt.sequence.slots else prompt.sequence.ids.tobytes()
            first.setdefault(key, []).append(prompt)
        alike = list(first.values())
        ordered = [group[0] for group in alike] + [prompt for group in alike for prompt in group[1:]]
        at = len(self)
        self.cache.reserve(at + len(ordered), max(prompt.room for prompt in ordered))
        self.owner = np.append(self.owner, [prompt.row for prompt in ordered])
        self.branch = np.append(self.branch, [prompt.branch for prompt in ordered])
        self.length = np.append(self.length, np.zeros(len(ordered), np.int64))
        hidden = self._prompts([group[0].sequence for group in alike], at)
        self.length[at:] = [len(prompt.sequence) for prompt in ordered]
        self._most = max(self._most, int(self.length.max()))
        copies = [n for n, group in enumerate(alike) for _ in group[1:]]
        for target, source in enumerate(copies, at + len(alike)):
            self.cache.move(at + source, target, int(self.length[target]))
        return hidden if not copies else hidden[[*range(len(alike)), *copies]]

    def _prompts(self, sequences: list[Sequence], first: int) -> Tensor:
        """The last hidden states of whole prompts, which ascend in length, in lines from `first` on."""
        found, begin = [], 0
        for n, sequence in enumerate(sequences):
            following = len(sequences[n + 1]) if n + 1 < len(sequences) else 0
            if following and (n + 2 - begin) * following <= AT_ONCE:
                continue
            some, t = sequences[begin:n + 1], len(sequence)
            ids = np.zeros((len(some), t), np.int64)
            for row, each in zip(ids, some):
                row[:len(each)] = each.ids
            slots = tuple((row, slot) for row, each in enumerate(some) for slot in each.slots)
            hidden = self.read(sent(ids, self.cache.device), first + begin, None, slots)
            last = torch.tensor([len(each) - 1 for each in some], device=hidden.device)
            found.append(hidden[torch.arange(len(some), device=hidden.device), last])
            begin = n + 1
        return torch.cat(found)

    def drop(self, gone: np.ndarray) -> None:
        """Free the lines where `gone` bool (L,) holds; the last ones move into their places."""
        kept = len(self) - np.count_nonzero(gone)
        holes, movers = np.flatnonzero(gone[:kept]), kept + np.flatnonzero(~gone[kept:])
        for target, source in zip(holes, movers):
            self.cache.move(int(source), int(target), int(self.length[source]))
        for held in (self.owner, self.branch, self.length):
            held[holes] = held[movers]
        self.owner, self.branch, self.length = self.owner[:kept], self.branch[:kept], self.length[:kept]
