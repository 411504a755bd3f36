"""What a stage does about numbers that go wrong: skip the step, go back, or stop.

    batch = guards.draw(batches)            leaves out the batches that a rollback condemned
    guards.skip(step, why, batch, losses)   the update of this step was refused: count, keep the batch, stop in the end
    guards.judge(step, loss)                it was not; sets `leapt` where the loss is one that the run goes back for

All ranks call these together and decide alike: on counts that move together, on a loss that is the same number on
each, and on what a gather tells all of them. Nothing here waits for a device.
"""

import dataclasses
import json
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unimm.config.stages import Guards as Limits
from unimm.disk import read_sealed, replace_file, write_sealed, writing
from unimm.losses import Losses
from unimm.train import ranks
from unimm.train.engine import NotFinite
from unimm.weights import write_tensors

MOST_FILES = 20
"""So many skipped steps' batches are kept for inspection; the one that stops the run is kept in any case."""


def spike(loss: float, seen: deque[float], limit: float) -> float | None:
    """The highest loss that would have been ordinary, if this one is above it; it is added to those `seen`.

    Ordinary is up to the median + `limit` robust deviations of those before it, once there are as many as `seen` keeps.
    """
    if not math.isfinite(loss):  # with a finite gradient, or the step had been refused
        return max(seen, default=0.0) if limit else None
    bound = math.inf
    if limit and len(seen) == seen.maxlen:
        median = statistics.median(seen)
        deviation = 1.4826 * statistics.median(abs(each - median) for each in seen)
        # A loss that hardly moves has no deviation to speak of; a thousandth of it is noise.
        bound = median + limit * max(deviation, 1e-3 * abs(median))
    seen.append(loss)  # a spike too: where the level has changed for good, half a window gets used to it
    return bound if loss > bound else None


class Guards:
    """The guards of one stage on one rank.

    folder   the stage's; rollbacks.json and bad-batches/ go there
    show     what a batch says in words, for the file of a bad one
    skipped  steps without an update so far; the schedule counts updates: step - skipped
    drawn    the number of the stream's next batch
    leapt    the batch whose loss sends the run back; None: it goes on
    """

    def __init__(self, limits: Limits, folder: Path, name: str, show: Callable[[object], dict] | None = None):
        self.limits, self.folder, self.name, self.show = limits, folder, name, show
        self.losses: deque[float] = deque(maxlen=limits.spike_window)
        self.skipped = self.in_row = self.drawn = 0
        self.leapt: int | None = None
        self.file = folder / "rollbacks.json"
        written = ranks.from_first(read_sealed(self.file)) or {"spikes": 0, "condemned": []}
        self.spiked: int = written["spikes"]
        self.condemned: list[list[int]] = written["condemned"]  # first and last batch, once for each rollback

    def draw(self, stream):
        """The stream's next batch that no rollback condemned."""
        while any(first <= self.drawn <= last for first, last in self.condemned):
            stream.next()
            self.drawn += 1
        self.drawn += 1
        return stream.next()

    def skip(self, step: int, why: str, batch, losses: Sequence[Losses]) -> None:
        """Account for a step that was refused because something was not finite; every rank calls this.

        `losses` are this rank's, one for each forward pass. Raises NotFinite where the run is to stop, DiskError
        where the batch can't be written.
        """
        self.skipped += 1
        self.in_row += 1
        stop = self.in_row >= self.limits.skips_in_row or self.skipped >= self.limits.skips
        everyone = ranks.gather(faults(losses))
        what = "; ".join(f"{', '.join(found)} on rank {rank}" for rank, found in enumerate(everyone) if found) or why
        # Where every loss is finite and the gradient is not, no rank can be told from another: all keep theirs.
        guilty = everyone[ranks.rank()] or not any(everyone)
        kept = None
        if guilty and (stop or self.skipped <= MOST_FILES):
            facts = {"stage": self.name, "step": step, "rank": ranks.rank(), "world": ranks.world(), "why": what,
                     "batch": self.drawn - 1, **(self.show(batch) if self.show else {})}
            stem = self.folder / "bad-batches" / f"step-{step:08d}-rank-{ranks.rank():05d}"
            kept = save_batch(stem, batch, losses, facts)
        files = [str(path) for path in ranks.gather(kept) if path]
        where = f"; its batch: {files[0]}" + (f" and {len(files) - 1} more" if files[1:] else "") if files else ""
        text = f"{self.name}, step {step}: {what}; no weight was changed by it"
        ranks.say(f"{text}, step skipped ({self.in_row} in a row, {self.skipped} in all){where}")
        if stop:
            allowed = f"guards.skips_in_row {self.limits.skips_in_row}, guards.skips {self.limits.skips}"
            raise NotFinite(f"{text}. {self.in_row} such steps in a row and {self.skipped} in all stop the run "
                            f"({allowed}){where}. Look at that batch, or lower optimizer.lr or optimizer.clip")

    def judge(self, step: int, loss: float) -> None:
        """Judge the mean loss over all ranks of a step that was taken: the same number on each."""
        self.in_row = 0
        bound = spike(loss, self.losses, self.limits.spike)
        if bound is None:
            return
        self.spiked += 1
        back = len(self.condemned) < self.limits.rollbacks
        spent = f" (all {self.limits.rollbacks} rollbacks are used up)" if self.limits.rollbacks and not back else ""
        ranks.say(f"{self.name}, step {step}: the loss leapt to {loss:.4g}; up to {bound:.4g} is ordinary{spent}")
        self.leapt = self.drawn - 1 if back else None

    def condemn(self, state: dict) -> None:
        """Before the loop goes back to a checkpoint whose `state` of these guards is given: leave out what led here.

        The batches up to the spike's are left out from now on, in this process and in any that continues the run.
        Raises DiskError.
        """
        first = max(state["drawn"], self.leapt - self.limits.rollback_batches + 1)
        self.condemned.append([first, self.leapt])
        if ranks.rank() == 0:
            write_sealed(self.file, {"spikes": self.spiked, "condemned": self.condemned})
        ranks.say(f"{self.name}: going back, and leaving out batches {first} to {self.leapt} "
                  f"(rollback {len(self.condemned)} of {self.limits.rollbacks})")

    def metrics(self) -> dict[str, int]:
        return {"skipped": self.skipped, "spikes": self.spiked, "rollbacks": len(self.condemned)}

    def state(self) -> dict:
        """Small JSON, alike on all ranks; goes into every checkpoint."""
        return {"skipped": self.skipped, "in_row": self.in_row, "spikes": self.spiked, "drawn": self.drawn,
                "losses": list(self.losses)}

    def restore(self, state: dict) -> None:
        """Go on from a checkpoint's; spikes that were seen after it was saved stay counted."""
        self.skipped, self.in_row, self.drawn = state["skipped"], state["in_row"], state["drawn"]
        self.spiked = max(self.spiked, state["spikes"])
        self.losses.clear()
        self.losses.extend(state["losses"])
        self.leapt = None


def faults(losses: Sequence[Losses]) -> list[str]:
    """What is not finite among this rank's losses, such as "loss/image is nan"; empty where all is well."""
    named = [("loss", float(each.total.detach())) for each in losses]
    named += [(f"loss/{part}", float(total)) for each in losses for part, (total, _) in each.parts.items()]
    return list(dict.fromkeys(f"{name} is {value}" for name, value in named if not math.isfinite(value)))


def save_batch(stem: Path, batch, losses: Sequence[Losses], facts: Mapping) -> Path:
    """Write STEM.safetensors (every array of `batch`, named by its place in it) and STEM.json; returns the latter.

    The JSON holds `facts`, the batch's plain values and the losses of each forward pass, part by part.
    Raises DiskError.
    """
    leaves = dict(_leaves(batch, ""))
    arrays = {name: torch.as_tensor(value) for name, value in leaves.items() if isinstance(value, np.ndarray | Tensor)}
    plain = {name: value for name, value in leaves.items() if name not in arrays}
    passes = [{"loss": float(each.total.detach()),
               "parts": {part: {"sum": float(total), "count": float(count)}
                         for part, (total, count) in each.parts.items()}} for each in losses]
    text = json.dumps({**facts, "losses": passes, "values": plain}, default=str)
    # Python's JSON writes NaN as such, which jq and browsers refuse: as text it survives every reader.
    text = json.dumps(json.loads(text, parse_constant=lambda name: str(float(name))), indent=1, ensure_ascii=False)
    with writing(stem):
        stem.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(stem.with_suffix(".safetensors"), arrays)
    replace_file(stem.with_suffix(".json"), text.encode())
    return stem.with_suffix(".json")


def _leaves(value, name: str) -> Iterator[tuple[str, object]]:
    """Everything in a batch that is no container, under names such as "ids", "1", "slots.0.1.payload"."""
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        yield name or "batch", value
        return
    for key, inner in value.items():
        yield from _leaves(inner, f"{name}.{key}" if name else str(key))
