"""What a run tells: the table before step 1, metrics.jsonl and TensorBoard, the progress line."""

import contextlib
import importlib.util
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from unimm.disk import writing
from unimm.train import ranks
from unimm.words import span

MOST_KEPT = 10_000
"""Values that a window keeps before it adds them up."""


class Window:
    """Sums and counts of named values since the last metrics line, weighted averages when it is due.

    Values are kept as they come and added up together, so that a GPU is not waited for at every step.
    """

    def __init__(self):
        self.added: list[tuple[str, Tensor | float, Tensor | float]] = []
        self.sums: dict[str, list[float]] = {}
        self.counted: dict[str, float] = {}

    def add(self, name: str, value: Tensor | float, count: Tensor | float = 1.0) -> None:
        """Scalars; tensors without a graph, which are not to change any more."""
        self.added.append((name, value, count))
        if len(self.added) == MOST_KEPT:
            self.state()

    def state(self) -> dict[str, list[float]]:
        """Name -> [sum, count] of this rank so far."""
        tensors = [v.double() for _, *both in self.added for v in both if isinstance(v, Tensor)]
        read = iter(torch.stack(tensors).tolist() if tensors else ())
        for name, *both in self.added:
            total = self.sums.setdefault(name, [0.0, 0.0])
            for i, v in enumerate(both):
                total[i] += next(read) if isinstance(v, Tensor) else v
        self.added = []
        return self.sums

    def restore(self, saved: list[dict[str, list[float]]]) -> None:
        """Go on from the sums of every rank; at another number of ranks the first takes them all."""
        if len(saved) == ranks.world():
            mine = saved[ranks.rank()]
        else:
            totals = {name: [sum(sums.get(name, (0.0, 0.0))[i] for sums in saved) for i in range(2)]
                      for name in {name: None for sums in saved for name in sums}}
            mine = totals if ranks.rank() == 0 else {}
        self.added, self.sums = [], {name: list(both) for name, both in mine.items()}

    def means(self) -> dict[str, float]:
        """The averages over all ranks, and a fresh start. A name that one rank lacks counts as 0 of 0 there.

        `counted` then says what they are averages over.
        """
        everyone = ranks.gather(self.state())
        totals = defaultdict(lambda: [0.0, 0.0])
        for sums in everyone:
            for name, (value, count) in sums.items():
                totals[name][0] += value
                totals[name][1] += count
        self.sums = {}
        self.counted = {name: count for name, (_, count) in totals.items()}
        return {name: value / count for name, (value, count) in totals.items() if count}


class Log:
    """metrics.jsonl, one flat object a line, and TensorBoard where it is installed."""

    def __init__(self, folder: Path, step: int):
        """Continue at `step`: lines of later steps, written before a crash, are dropped. Raises DiskError."""
        self.path = folder / "metrics.jsonl"
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        part = self.path.with_name("metrics.jsonl.part")
        with writing(self.path):
            part.write_text("".join(kept))
            os.replace(part, self.path)
        self.board = None
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add a line. Raises DiskError."""
        with writing(self.path), open(self.path, "a") as file:
            file.write(json.dumps({"step": step} | values) + "\n")
        if self.board:
            from tensorboard.compat.proto.summary_pb2 import Summary

            # One event a line: one a value costs as much as a small model's step.
            scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
            with writing(self.path.with_name("tensorboard")):
                self.board.file_writer.add_summary(Summary(value=scalars), step)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a full disk: metrics.jsonl has said so, and holds every line
            if self.board:
                self.board.close()


class Progress:
    """One line that rewrites itself on a terminal; about twenty lines and one a minute in a log."""

    def __init__(self, name: str, start: int, steps: int, unit: str):
        self.name, self.start, self.steps, self.unit = name, start, steps, unit
        self.began = time.monotonic()
        self.live = sys.stdout.isatty()
        self.next_step, self.next_time = start, self.began

    def show(self, step: int, values: dict[str, float]) -> None:
        """After `step` steps; `values` is the newest metrics line."""
        losses = "  ".join(f"{name} {value:.4f}" for name, value in values.items() if name.startswith("loss"))
        self.tell(step, f"  {losses}  {values['tokens_per_second']:,.0f} {self.unit}/s", "steps")

    def tell(self, step: int, words: str, unit: str) -> None:
        """`words` with how far it is, how many `unit` a second, and how long it still takes."""
        now = time.monotonic()
        due = self.live or step >= self.next_step or now >= self.next_time or step == self.steps
        if not due:
            return
        self.next_step, self.next_time = step + max(1, self.steps // 20), now + 60
        rate = (step - self.start) / max(now - self.began, 1e-9)
        left = span((self.steps - step) / max(rate, 1e-9))
        line = f"{self.name} {step}/{self.steps}{words}  {rate:.2f} {unit}/s  {left} left"
        end = "" if self.live and step < self.steps else "\n"
        print(f"\r\033[K{line}" if self.live else line, end=end, flush=True)


def teller() -> Callable[[str], None]:
    """`print` on rank 0, silence elsewhere."""
    return (lambda text: print(text, flush=True)) if ranks.rank() == 0 else (lambda text: None)
