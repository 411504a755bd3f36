"""What rank 0 tells of a stage: metrics.jsonl, TensorBoard, the progress line."""

import contextlib
import json
import sys
import time
from pathlib import Path

from unimm.disk import replace_file, writing
from unimm.train import ranks
from unimm.words import span


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
        if not due or ranks.rank() > 0:
            return
        self.next_step, self.next_time = step + max(1, self.steps // 20), now + 60
        rate = (step - self.start) / max(now - self.began, 1e-9)
        left = span((self.steps - step) / max(rate, 1e-9))
        line = f"{self.name} {step}/{self.steps}{words}  {rate:.2f} {unit}/s  {left} left"
        end = "" if self.live and step < self.steps else "\n"
        print(f"\r\033[K{line}" if self.live else line, end=end, flush=True)
