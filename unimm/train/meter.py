"""What a metrics line tells beside averages: how much was learned from, which codes, and what the time went to."""

import time
from collections import defaultdict
from collections.abc import Mapping
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


class Meter:
    """Counts of a stage on one rank. Every rank calls `line` and `state` together.

    codes            codebook -> (first id, one past the last)
    flops_per_token  of forward and backward; `peak` FLOP/s of one rank's device. MFU where both are known.
    """

    def __init__(self, codes: Mapping[str, tuple[int, int]], flops_per_token: float = 0.0, peak: float | None = None):
        self.codes = {name: CodeUse(*ids) for name, ids in codes.items()}
        self.flops_per_token, self.peak = flops_per_token, peak
        self.learned: dict[str, float] = {}
        self.waited: dict[str, float] = defaultdict(float)

    @contextmanager
    def waiting(self, for_what: str):
        """Around what the device idles for: "data", "save"."""
        began = time.monotonic()
        yield
        self.waited[for_what] += time.monotonic() - began

    def see(self, batch) -> None:
        """Note the image targets of a packed batch (numpy, before it goes to a device)."""
        if self.codes and isinstance(batch, Batch):
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
        for rank in ranks.gather(dict(self.waited)):
            slowest = {name: max(slowest.get(name, 0.0), rank.get(name, 0.0)) for name in slowest | rank}
        values |= {f"seconds/{name}": round(seconds, 3) for name, seconds in slowest.items()}
        self.waited.clear()
        if self.flops_per_token and self.peak:
            values["mfu"] = tokens_per_second * self.flops_per_token / (self.peak * ranks.world())
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
