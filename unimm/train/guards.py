"""What a stage does about numbers that go wrong: skip the step, go back, or stop.

    batch = guards.draw(step, batches)      leaves out the batches that a rollback condemned
    guards.skip(step, why, batch, losses)   the update of this step was refused: count, keep the batch, stop in the end
    guards.after_step(step, loss)           "go on", or "roll back" where the loss leapt

All ranks call these together and decide alike: on counts that move together, on a loss that is the same number on
each, and on what a gather tells all of them. Nothing here waits for a device.
"""

import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from unimm.config.guards import Guards as Limits
from unimm.disk import read_sealed, write_sealed
from unimm.losses import Losses
from unimm.train import ranks
from unimm.train.inspection import faults, save_batch
from unimm.train.update import NotFinite

MOST_FILES = 20
"""Skipped batches that each rank keeps for inspection; the one that stops the run is kept in any case."""


class Spikes:
    """Whether a loss stands out of those before it: median + `limit` robust deviations over the last `window`."""

    def __init__(self, limit: float, window: int):
        self.limit = limit
        self.seen: deque[float] = deque(maxlen=window)

    def add(self, loss: float) -> float | None:
        """The highest loss that would have been ordinary, if this one is above it. """
        if not math.isfinite(loss):  # with a finite gradient, or the step had been refused
            return max(self.seen, default=0.0) if self.limit else None
        bound = None
        if self.limit and len(self.seen) == self.seen.maxlen:
            median = statistics.median(self.seen)
            deviation = 1.4826 * statistics.median(abs(each - median) for each in self.seen)
            # A loss that hardly moves has no deviation to speak of; a thousandth of it is noise.
            bound = median + self.limit * max(deviation, 1e-3 * abs(median))
        self.seen.append(loss)  # a spike too: where the level has changed for good, half a window gets used to it
        return bound if bound is not None and loss > bound else None


class Guards:
    """The guards of one stage on one rank.

    folder   the stage's; rollbacks.json and bad-batches/ go there
    show     what a batch says in words, for the file of a bad one
    skipped  steps without an update so far; the schedule counts updates: step - skipped
    """

    def __init__(self, limits: Limits, folder: Path, name: str, say: Callable[[str], None],
                 show: Callable[[object], dict] | None = None):
        self.limits, self.folder, self.name, self.say, self.show = limits, folder, name, say, show
        self.spikes = Spikes(limits.spike, limits.spike_window)
        self.skipped = self.in_row = self.drawn = self.kept = 0
        self.recent: deque[tuple[int, int]] = deque(maxlen=8)  # (step, its batch): a loss may be known steps later
        self.spike_step = 0
        written = ranks.from_first(read_sealed(self._file) if ranks.rank() == 0 else None) or {}
        self.spiked, self.rollbacks = written.get("spikes", 0), written.get("rollbacks", 0)
        self.condemned: list[list[int]] = written.get("condemned", [])

    @property
    def _file(self) -> Path:
        return self.folder / "rollbacks.json"

    def draw(self, step: int, stream):
        """The batch for `step`: the stream's next one that no rollback condemned."""
        while any(first <= self.drawn <= last for first, last in self.condemned):
            stream.next()
            self.drawn += 1
        self.recent.append((step, self.drawn))
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
        guilty = {rank: found for rank, found in enumerate(everyone) if found}
        what = "; ".join(f"{', '.join(found)} on rank {rank}" for rank, found in guilty.items()) or why
        # Where every loss is finite and the gradient is not, no rank can be told from another: all keep theirs.
        kept = None
        if (not guilty or ranks.rank() in guilty) and (stop or self.kept < MOST_FILES):
            self.kept += 1
            kept = self._keep(step, what, batch, losses)
        files = [str(path) for path in ranks.gather(kept) if path]
        where = f"; its batch: {files[0]}" + (f" and {len(files) - 1} more" if files[1:] else "") if files else ""
        text = f"{self.name}, step {step}: {what}; no weight was changed by it"
        self.say(f"{text}, step skipped ({self.in_row} in a row, {self.skipped} in all){where}")
        if stop:
            allowed = f"guards.skips_in_row {self.limits.skips_in_row}, guards.skips {self.limits.skips}"
            raise NotFinite(f"{text}. {self.in_row} such steps in a row and {self.skipped} in all stop the run "
                            f"({allowed}){where}. Look at that batch, or lower optimizer.lr or optimizer.clip")

    def _keep(self, step: int, what: str, batch, losses: Sequence[Losses]) -> Path:
        facts = {"stage": self.name, "step": step, "rank": ranks.rank(), "world": ranks.world(), "why": what,
                 "batch": self.recent[-1][1] if self.recent else None}
        shown = self.show(batch) if self.show else {}
        stem = self.folder / "bad-batches" / f"step-{step:08d}-rank-{ranks.rank():05d}"
        return save_batch(stem, batch, losses, facts | shown)

    def after_step(self, step: int, loss: float) -> Literal["go on", "roll back"]:
        """Judge the loss of `step`, its mean over all ranks: the same number on each. The step may lie a few back."""
        self.in_row = 0
        bound = self.spikes.add(loss)
        if bound is None:
            return "go on"
        self.spiked += 1
        self.spike_step = step
        back = self.rollbacks < self.limits.rollbacks
        spent = f" (all {self.limits.rollbacks} rollbacks are used up)" if self.limits.rollbacks and not back else ""
        self.say(f"{self.name}, step {step}: the loss leapt to {loss:.4g}; up to {bound:.4g} is ordinary{spent}")
        return "roll back" if back else "go on"

    def condemn(self, state: dict) -> None:
        """Before the loop goes back to a checkpoint whose `state` of these guards is given: leave out what led here.

        The batches up to the spike's are left out from now on, in this process and in any that continues the run.
        Raises DiskError.
        """
        self.rollbacks += 1
        last = dict(self.recent)[self.spike_step]
        first = max(state["drawn"], last - self.limits.rollback_batches + 1)
        self.condemned = [*self.condemned, [first, last]]
        if ranks.rank() == 0:
            write_sealed(self._file, {"spikes": self.spiked, "rollbacks": self.rollbacks, "condemned": self.condemned})
        self.say(f"{self.name}: going back, and leaving out batches {first} to {last} "
                 f"(rollback {self.rollbacks} of {self.limits.rollbacks})")

    def metrics(self) -> dict[str, int]:
        return {"skipped": self.skipped, "spikes": self.spiked, "rollbacks": self.rollbacks}

    def state(self) -> dict:
        """Small JSON, alike on all ranks; goes into every checkpoint."""
        return {"skipped": self.skipped, "in_row": self.in_row, "spikes": self.spiked, "rollbacks": self.rollbacks,
                "drawn": self.drawn, "condemned": self.condemned, "losses": list(self.spikes.seen),
                "recent": list(self.recent)}

    def restore(self, state: dict) -> None:
        """Go on from a checkpoint's; what was condemned after it was saved stays so."""
        self.skipped, self.in_row, self.drawn = state["skipped"], state["in_row"], state["drawn"]
        self.spiked = max(self.spiked, state["spikes"])
        self.rollbacks = max(self.rollbacks, state["rollbacks"])
        self.condemned += [each for each in state["condemned"] if each not in self.condemned]
        self.spikes.seen.clear()
        self.spikes.seen.extend(state["losses"])
        self.recent.clear()
        self.recent.extend((step, number) for step, number in state["recent"])
