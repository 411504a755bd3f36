"""What a stage tells of itself: the values of a metrics line, where they are written, and the progress line.

A line tells averages, how much was learned from, which codes, how fast, and what the time went to.
"""

import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unimm.disk import replace_file, writing
from unimm.sample import Batch
from unimm.train import ranks
from unimm.words import span

Flops = Callable[[float, float], float]
"""Of a token (or image), forward and backward: by the mean length of the document that a token is in, and by the share
of tokens that are learned."""
DOCUMENT, LEARNED = "mean length of documents", "share of tokens that are learned"


class Meter:
    """Counts of a stage on one rank; a *window* is what lies between two metrics lines. Every rank calls `line` and
    `state` together.

    codes  codebook -> (first id, one past the last)
    peak   bf16 FLOP/s of one rank's device; the MFU is logged where it and `flops` are known, whatever the precision
    tokens  read so far on all ranks (or images)
    """

    def __init__(self, codes: Mapping[str, tuple[int, int]], flops: Flops | None = None, peak: float | None = None):
        self.ranges, self.flops, self.peak = codes, flops, peak
        self.restore({"seconds": 0.0, "tokens": 0, "learned": {}, "sums": {}, "codes": {}})

    @contextmanager
    def waiting(self, for_what: str):
        """Around what the device idles for: "data", "save", "preview"."""
        began = time.monotonic()
        yield
        self.waited[for_what] += time.monotonic() - began

    def add(self, name: str, value: Tensor | float, count: Tensor | float = 1.0) -> None:
        """Scalars, tensors without a graph among them: added up where they are, so that no GPU is waited for."""
        self.sums[name] = [old + torch.as_tensor(new, dtype=torch.float64)
                           for old, new in zip(self.sums.get(name, (0.0, 0.0)), (value, count))]

    def see(self, batch) -> None:
        """Note the image targets and the documents of a packed batch (numpy, before it goes to a device)."""
        if not isinstance(batch, Batch):
            return
        real = batch.document > 0
        tokens = np.count_nonzero(real)
        # 1 + 3 + 5 + ... over a document is its length squared.
        self.add(DOCUMENT, int((2 * batch.position + 1)[real].sum()), tokens)
        self.add(LEARNED, np.count_nonzero(batch.learn), tokens)
        ids = batch.targets[batch.learn & batch.image]
        for name, (start, stop) in self.ranges.items():
            self.codes[name] += np.bincount(ids[(ids >= start) & (ids < stop)] - start, minlength=stop - start)

    def line(self) -> dict[str, float]:
        """The values of one metrics line; the window starts anew. What one rank lacks counts as 0 of 0 there."""
        now = time.monotonic()
        totals, codes, waited = self._together()
        squares, tokens = totals.pop(DOCUMENT, (0.0, 0.0))
        learned, _ = totals.pop(LEARNED, (0.0, 0.0))
        self.learned.update({f"learned/{name.removeprefix('loss/')}": int(count)
                             for name, (_, count) in totals.items() if name.startswith("loss/")})
        # Of training alone, without what it stops for.
        training = now - self.line_began - self.waited["save"] - self.waited["preview"]
        rate = (self.tokens - self.line_tokens) / max(training, 1e-9)
        values = {name: value / count for name, (value, count) in totals.items() if count}
        values |= {"seconds": round(now - self.began, 3), "tokens": self.tokens, "tokens_per_second": round(rate, 1)}
        values |= dict(self.learned) | {f"seconds/{what}": round(each, 6) for what, each in sorted(waited.items())}
        for name, counts in codes.items():
            values |= {f"codes/{name}/{what}": value for what, value in evenness(counts).items()}
        if self.flops and self.peak:
            each = self.flops(squares / tokens, learned / tokens) if tokens else self.flops(0.0, 1.0)
            values["mfu"] = rate * each / (self.peak * ranks.world())
        self._open()
        return values

    def _open(self) -> None:
        """Start a window."""
        self.sums, self.waited = {}, Counter()
        self.codes = {name: np.zeros(stop - start, np.int64) for name, (start, stop) in self.ranges.items()}
        self.line_began, self.line_tokens = time.monotonic(), self.tokens

    def _together(self) -> tuple[dict[str, list[float]], dict[str, np.ndarray], Counter]:
        """Of the window, over all ranks: name -> [sum, count]; codebook -> how often each code; the longest waits."""
        totals, waited = defaultdict(lambda: [0.0, 0.0]), Counter()
        own = {name: [float(each) for each in both] for name, both in self.sums.items()}
        for sums, waits in ranks.gather((own, self.waited)):
            for name, both in sums.items():
                totals[name] = [a + b for a, b in zip(totals[name], both)]
            waited |= waits
        return totals, {name: np.array(ranks.total(seen), int) for name, seen in self.codes.items()}, waited

    def state(self) -> dict:
        """Small JSON, alike on all ranks and for any number of them; the open window's codes as [code, count]."""
        totals, codes, _ = self._together()
        pairs = {name: np.stack([n.nonzero()[0], n[n > 0]], 1).tolist() for name, n in codes.items()}
        return {"seconds": time.monotonic() - self.began, "tokens": self.tokens, "learned": self.learned,
                "sums": totals, "codes": pairs}

    def restore(self, state: dict) -> None:
        """Go on from a state of any number of ranks; the first takes what all had in the open window."""
        self.began, self.tokens = time.monotonic() - state["seconds"], state["tokens"]
        self.learned: Counter[str] = Counter(state["learned"])
        self._open()
        if ranks.rank() == 0:
            self.sums |= state["sums"]
            for name, counts in self.codes.items():
                for code, count in state["codes"].get(name, ()):
                    counts[code] = count


def evenness(counts: np.ndarray) -> dict[str, float]:
    """How evenly a codebook is used, from how often each code occurred: entropy in bits, and the share that did occur.

    A tokenizer that collapsed, or a mixture that shows few images, is seen here before it is seen in a loss.
    """
    share = counts[counts > 0] / max(counts.sum(), 1)
    return {"entropy": float(-(share * np.log2(share)).sum()), "used": len(share) / len(counts)} if len(share) else {}


class Log:
    """metrics.jsonl, one flat object a line, and TensorBoard. Rank 0 alone writes them."""

    def __init__(self, folder: Path, step: int):
        """Continue at `step`: lines of later steps, written before a crash, are dropped. Raises DiskError."""
        self.path, self.board = folder / "metrics.jsonl", None
        if ranks.rank() > 0:
            return
        from torch.utils.tensorboard import SummaryWriter

        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        replace_file(self.path, "".join(kept).encode())
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add a line. Raises DiskError."""
        if self.board is None:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        with writing(self.path), open(self.path, "a") as file:
            file.write(json.dumps({"step": step} | values) + "\n")
        # One event a line: one a value costs as much as a small model's step.
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        with writing(self.path.with_name("tensorboard")):
            self.board.file_writer.add_summary(Summary(value=scalars), step)

    def close(self) -> None:
        with suppress(OSError):  # a full disk: metrics.jsonl has said so, and holds every line
            if self.board:
                self.board.close()


class Progress:
    """One line that rewrites itself on a terminal; about twenty lines and one a minute in a log."""

    def __init__(self, name: str, start: int, steps: int, unit: str):
        self.name, self.start, self.steps, self.unit = name, start, steps, unit
        self.began, self.live = time.monotonic(), sys.stdout.isatty()
        self.next_step, self.next_time = start, self.began

    def show(self, step: int, values: dict[str, float]) -> None:
        """After `step` steps; `values` is the newest metrics line."""
        losses = "  ".join(f"{name} {value:.4f}" for name, value in values.items() if name.startswith("loss"))
        self.tell(step, f"  {losses}  {values['tokens_per_second']:,.0f} {self.unit}/s", "steps")

    def tell(self, step: int, words: str, unit: str) -> None:
        """`words` with how far it is, how many `unit` a second, and how long it still takes."""
        now = time.monotonic()
        due = self.live or step >= self.next_step or now >= self.next_time or step == self.steps
        if not due or ranks.rank() > 0:
            return
        self.next_step, self.next_time = step + max(1, self.steps // 20), now + 60
        rate = (step - self.start) / max(now - self.began, 1e-9)
        left = span((self.steps - step) / max(rate, 1e-9))
        line = f"{self.name} {step}/{self.steps}{words}  {rate:.2f} {unit}/s  {left} left"
        end = "" if self.live and step < self.steps else "\n"
        print(f"\r\033[K{line}" if self.live else line, end=end, flush=True)
