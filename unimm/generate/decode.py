"""The decode loop: prompts in, ids out, for many rows that are each at their own place.

One forward a step serves all rows and both guidance branches; logits are computed only over the ids
that the layout allows next.

    N rows   R = N, or 2 N with guidance (the unconditional branch below)   T prompt length
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from unimm.config.check import ConfigError
from unimm.config.sampling import Sampling
from unimm.generate.choose import RowRandom, choose, guided
from unimm.grammar import Automaton
from unimm.layout import Layout
from unimm.model.cache import KVCache
from unimm.model.unified import UnifiedModel
from unimm.sample import Part, Sequence, Slot


@dataclass
class Request:
    """One row: the prompt, its unconditional form if guided, its seed, and where it may go.

    start   the automaton's state behind the prompt: TEXT, or the first code of an image of some size
    limit   the most ids to write
    ids     what was written
    """

    prompt: Sequence
    unconditional: Sequence | None = None
    seed: int = 0
    start: int = Automaton.TEXT
    limit: int = 10_000
    ids: list[int] = field(default_factory=list)


def image_request(layout: Layout, automaton: Automaton, parts, size=None, guided: bool = True,
                  seed: int = 0, negative: tuple[Part, ...] = ()) -> Request:
    """A request for one image after `parts`; guided away from `negative`, or from the form without a context."""
    size = size or layout.config.sizes[0]
    prompt = layout.prompt(parts, "image", size)
    free = layout.prompt(negative or parts, "image", size, unconditional=not negative) if guided else None
    return Request(prompt, free, seed, automaton.after(layout.write_plans[size].header))


@torch.inference_mode()
def decode(model: UnifiedModel, layout: Layout, automaton: Automaton, requests: list[Request],
           sampling: Sampling, batch: int = 256) -> None:
    """Fill in `ids` of every request: to the image's end, or to the text's end, the first image, or `limit`.

    A request with an unconditional form is guided by `sampling.guidance` at image positions.
    """
    if sampling.window > 1:
        raise ConfigError("speculative decoding is not built yet")
    model.eval()
    for guides in (True, False):
        same = [r for r in requests if (r.unconditional is not None and sampling.guidance != 1) == guides]
        same.sort(key=lambda r: len(r.prompt))  # little padding in a batch
        for at in range(0, len(same), batch):
            _Rows(model, layout, automaton, same[at:at + batch], sampling, guides).run()


class _Rows:
    def __init__(self, model: UnifiedModel, layout: Layout, automaton: Automaton, requests: list[Request],
                 sampling: Sampling, guides: bool):
        self.model, self.automaton, self.requests, self.sampling, self.guides = (
            model, automaton, requests, sampling, guides)
        self.pad = layout.pad_id
        self.device = model.device
        self.codes: torch.Tensor | None = None
        self.states = np.array([r.start for r in requests])
        self.in_text = self.states == Automaton.TEXT
        self.alive = np.array([r.limit > 0 for r in requests], bool)
        self.random = RowRandom([r.seed for r in requests])
        prompts = [r.prompt.ids for r in requests]
        prompts += [r.unconditional.ids for r in requests] if guides else []
        self.lengths = np.array([len(p) for p in prompts])
        width = int(self.lengths.max())
        self.ids = np.full((len(prompts), width), self.pad)
        for row, p in enumerate(prompts):
            self.ids[row, width - len(p):] = p

    def run(self) -> None:
        width = self.ids.shape[1]
        self.cache = KVCache(width + self._most_steps())
        real = np.arange(width) >= width - self.lengths[:, None]  # (R, T); prompts end together, padding is left
        position = np.maximum(np.arange(width) - (width - self.lengths[:, None]), 0)
        mask = np.tril(np.ones((width, width), bool)) & real[:, None, :]
        mask |= np.eye(width, dtype=bool)  # padding sees itself: a softmax over nothing would be NaN
        hidden = self._forward(self.ids, position, mask[:, None], self._slots())
        while True:
            chosen = self._next(hidden)
            for row in np.flatnonzero(self.alive):
                self.requests[row].ids.append(int(chosen[row]))
            self._advance(chosen)
            if not self.alive.any() or self.cache.length >= self.cache.capacity:
                return
            real = np.concatenate([real, np.ones((len(real), 1), bool)], 1)
            branches = np.concatenate([chosen, chosen]) if self.guides else chosen
            at = (self.lengths + self.cache.length - width)[:, None]
            hidden = self._forward(branches[:, None], at, real[:, None, None, :])

    def _most_steps(self) -> int:
        """No row writes more than its limit; an image also not more than the automaton has places."""
        return max(min(r.limit, r.limit if r.start == Automaton.TEXT else len(self.automaton.table))
                   for r in self.requests)

    def _slots(self) -> tuple[tuple[int, Slot], ...]:
        """What the prompts hold beside ids, where it lies once padding stands on their left."""
        prompts = [r.prompt for r in self.requests] + [r.unconditional for r in self.requests if self.guides]
        padding = self.ids.shape[1] - self.lengths
        return tuple((row, replace(slot, start=int(padding[row]) + slot.start))
                     for row, prompt in enumerate(prompts) for slot in prompt.slots)

    def _forward(self, ids: np.ndarray, position: np.ndarray, mask: np.ndarray, slots=()) -> torch.Tensor:
        """The last position's hidden states (R, width)."""
        ids, position, mask = (torch.as_tensor(x, device=self.device) for x in (ids, position, mask))
        hidden, self.codes = self.model.read_on(ids, position, mask, self.cache, self.codes, slots)
        return hidden

    def _next(self, hidden: torch.Tensor) -> np.ndarray:
        """One allowed id a row, each by the rule of the kind of position it is at."""
        n, chosen = len(self.requests), np.full(len(self.requests), self.pad)
        sets = self.automaton.set_of[self.states]
        for number in np.unique(sets[self.alive]):
            rows = np.flatnonzero(self.alive & (sets == number))
            allowed, text = self.automaton.sets[number], self.automaton.kinds[number] == "text"
            if len(allowed) == 1:
                chosen[rows] = allowed[0]
                continue
            index = torch.as_tensor(rows, device=self.device)
            logits = self._logits(hidden[index], allowed)
            if self.guides and not text:
                logits = guided(logits, self._logits(hidden[index + n], allowed), self.sampling.guidance)
            how = self.sampling.text if text else self.sampling.image
            chosen[rows] = allowed[choose(logits, self.random.uniform(rows), how)]
        return chosen

    def _logits(self, hidden: torch.Tensor, allowed: np.ndarray) -> torch.Tensor:
        first, last = int(allowed[0]), int(allowed[-1])
        one_run = last - first + 1 == len(allowed)
        rows = slice(first, last + 1) if one_run else torch.as_tensor(allowed, device=self.device)
        return self.model.logits(hidden, rows)

    def _advance(self, chosen: np.ndarray) -> None:
        alive = np.flatnonzero(self.alive)
        self.states[alive] = self.automaton.advance(self.states[alive], chosen[alive])
        for row in alive:
            state, request = self.states[row], self.requests[row]
            ended = state == Automaton.DONE or (state == Automaton.TEXT) != self.in_text[row]
            self.alive[row] = not ended and len(request.ids) < request.limit
