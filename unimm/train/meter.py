"""What a metrics line tells beside averages: how much was learned from, which codes, and what the time went to."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist

from unimm.sample import Batch
from unimm.train import ranks

FOLD = 1_000_000
"""Ids that are kept before they are counted: counting costs a pass over the codebook."""


class CodeUse:
    """How evenly the image targets of a metrics window use a codebook, whose ids are start..stop-1.

    A tokenizer that collapsed, or a mixture that shows few images, is seen here before it is seen in a loss.
    """

    def __init__(self, start: int, stop: int):
        self.start = start
        self.counts = np.zeros(stop - start, np.int64)
        self.pending: list[np.ndarray] = []

    def add(self, ids: np.ndarray) -> None:
        """ids int (n,): image targets, those of other codebooks among them."""
        self.pending.append(ids)
        if sum(map(len, self.pending)) > FOLD:
            self._fold()

    def _fold(self) -> None:
        ids = np.concatenate([*self.pending, np.zeros(0, np.int64)]) - self.start
        self.pending = []
        self.counts += np.bincount(ids[(ids >= 0) & (ids < len(self.counts))], minlength=len(self.counts))

    def over_ranks(self) -> np.ndarray:
        """int64 (codes,): how often each occurred, on all ranks together."""
        self._fold()
        if ranks.world() == 1:
            return self.counts
        counts = torch.from_numpy(self.counts.copy()).to(ranks.device())
        dist.all_reduce(counts)
        return counts.cpu().numpy()

    def values(self) -> dict[str, float]:
        """Entropy in bits and the share of codes that occurred, of the window, which then starts anew."""
        counts = self.over_ranks()
        self.counts = np.zeros_like(self.counts)
        seen = counts[counts > 0]
        if not len(seen):
            return {}
        share = seen / seen.sum()
        return {"entropy": float(-(share * np.log2(share)).sum()), "used": len(seen) / len(counts)}


Flops = Callable[[float, float], float]
"""Of a token (or image), forward and backward: by the mean length of the document that a token is in, and by the share
of tokens that are learned."""


class Meter:
    """Counts of a stage on one rank. Every rank calls `line` and `state` together.

    codes  codebook -> (first id, one past the last)
    peak   bf16 FLOP/s of one rank's device; the MFU is logged where it and `flops` are known, whatever the precision
    """

    def __init__(self, codes: Mapping[str, tuple[int, int]], flops: Flops | None = None, peak: float | None = None):
        self.codes = {name: CodeUse(*ids) for name, ids in codes.items()}
        self.flops, self.peak = flops, peak
        self.seen = np.zeros(3)  # of the window: tokens, their documents' lengths added up, learned tokens
        self.learned: dict[str, float] = {}
        self.waited: dict[str, float] = defaultdict(float)

    @contextmanager
    def waiting(self, for_what: str):
        """Around what the device idles for: "data", "save"."""
        began = time.monotonic()
        yield
        self.waited[for_what] += time.monotonic() - began

    def see(self, batch) -> None:
        """Note the image targets and the documents of a packed batch (numpy, before it goes to a device)."""
        if not isinstance(batch, Batch):
            return
        real = batch.document > 0
        squares = (2 * batch.position + 1)[real].sum()  # 1 + 3 + 5 + ... over a document is its length squared
        self.seen += np.count_nonzero(real), squares, np.count_nonzero(batch.learn)
        if self.codes:
            ids = np.asarray(batch.targets)[np.asarray(batch.learn & batch.image)]
            for use in self.codes.values():
                use.add(ids)

    def line(self, counted: Mapping[str, float], tokens_per_second: float) -> dict[str, float]:
        """The values of one metrics line. `counted`: what the window's averages were over, all ranks together."""
        for name, count in counted.items():
            if name.startswith("loss/"):
                part = name.removeprefix("loss/")
                self.learned[part] = self.learned.get(part, 0) + int(count)
        values = {f"learned/{part}": count for part, count in self.learned.items()}
        for name, use in self.codes.items():
            values |= {f"codes/{name}/{what}": value for what, value in use.values().items()}
        slowest: dict[str, float] = {}
        waited, seen = zip(*ranks.gather((dict(self.waited), self.seen)))
        for rank in waited:
            slowest = {name: max(slowest.get(name, 0.0), rank.get(name, 0.0)) for name in slowest | rank}
        values |= {f"seconds/{name}": round(seconds, 3) for name, seconds in slowest.items()}
        self.waited.clear()
        if self.flops and self.peak:
            tokens, squares, learned = sum(seen)
            each = self.flops(squares / tokens, learned / tokens) if tokens else self.flops(0.0, 1.0)
            values["mfu"] = tokens_per_second * each / (self.peak * ranks.world())
        self.seen = np.zeros(3)
        return values

    def state(self) -> dict:
        """Small JSON, alike on all ranks and for any number of them; the open window's codes as [code, count]."""
        codes = {}
        for name, use in self.codes.items():
            counts = use.over_ranks()
            codes[name] = [[int(code), int(counts[code])] for code in np.flatnonzero(counts)]
        return {"learned": self.learned, "codes": codes}

    def restore(self, state: dict) -> None:
        self.learned = dict(state["learned"])
        for name, use in self.codes.items():
            use.counts[:], use.pending = 0, []
            for code, count in state["codes"].get(name, []) if ranks.rank() == 0 else []:
                use.counts[code] = count
