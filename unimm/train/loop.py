"""One stage, from its first step or its newest checkpoint to its last step; one loop for every objective.

    batch --module--> Losses --engine--> gradients --> clip --> update --> metrics, preview, checkpoint
"""

import contextlib
import dataclasses
import math
import random
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import nn

from unimm import checkpoint
from unimm.config.stages import Stage
from unimm.losses import Losses
from unimm.status import HUNG, Status
from unimm.train import ranks
from unimm.train.engine import Engine, NotFinite, TrainError, build_engine, check_engine, per_step
from unimm.train.guards import Guards
from unimm.train.meter import Meter
from unimm.train.progress import Log, Progress, Window, parameter_table, teller
from unimm.train.schedule import multiplier
from unimm.train.signals import Interrupted, Signals, verdict, votes
from unimm.train.watchdog import Watchdog


class Stream(Protocol):
    """Where batches come from. `state` is small JSON, alike on all ranks, as of the last batch given out."""

    def next(self): ...

    def state(self) -> dict: ...

    def restore(self, state: dict) -> None: ...


@dataclass(frozen=True)
class Work:
    """What a stage trains and on what.

    module    called with a batch (its numpy arrays as tensors on this rank's device), gives Losses
    batches   this rank's share of each optimizer step
    preview   called on rank 0 every `preview_every` steps and at the end (not under ZeRO-3), module in eval
              mode, without gradients; may return scalars for the metrics; can't disturb training's randomness
    new_rows  parameter name -> how many of its rows are new and must learn
    recipe    the resolved recipe as JSON values, kept in every checkpoint
    show      a batch in words, as JSON values, for the file of one that went wrong
    codes     codebook -> its ids (first, one past the last), to log how evenly image targets use it
    flops_per_token  of forward and backward, for the MFU
    """

    module: nn.Module
    batches: Stream
    preview: Callable[[int], Mapping[str, float] | None] | None = None
    new_rows: dict[str, int] = field(default_factory=dict)
    recipe: dict = field(default_factory=dict)
    show: Callable[[object], dict] | None = None
    codes: dict[str, tuple[int, int]] = field(default_factory=dict)
    flops_per_token: float = 0.0


def run_stage(work: Work, stage: Stage, folder: Path, *, name: str = "train", again: str | None = None,
              engine: Literal["auto", "deepspeed", "plain"] = "auto", status: Status | None = None) -> Path:
    """Train `work.module` in place to the stage's last step; returns the final checkpoint.

    Continues from the newest whole checkpoint in `folder`, if any. Every rank calls this together.
    `again` is the command that continues after an interruption; by default this process's own. `status` is kept up.

    Raises TrainError (nothing trains, uneven shares, NaN), CheckpointError, Interrupted.
    """
    ranks.start()
    check_engine(stage, ranks.world())
    _check_trains(work)
    say = teller()
    found = _find(folder, say)
    if found and checkpoint.read_state(found)["step"] >= stage.steps:
        checkpoint.load_weights(found, work.module)
        say(f"{name}: already done, {found}")
        if status:
            status.at(stage=name, step=stage.steps, steps=stage.steps, checkpoint=str(found))
        return found
    _seed(stage.seed + ranks.rank())
    if found:
        checkpoint.load_weights(found, work.module)
    work.module.to(ranks.device())
    _announce(work, stage, name, say)
    run = _Run(work, stage, folder, name, build_engine(work.module, stage, engine), status)
    if found:
        run.restore(found)
        say(f"{name}: continuing after step {run.step} from {found}")
        if checkpoint.read_recipe(found) != work.recipe:
            say(f"{name}: the recipe differs from the one it was saved with ({found / 'recipe.json'})")
    run.begin()
    with contextlib.closing(run), Signals() as signals:
        while run.step < stage.steps:
            stop = run.one_step(signals.received)
            if run.leapt and run.roll_back():
                continue  # a signal is still there at the next step
            done = run.step == stage.steps
            if done or stop or run.step % stage.save_every == 0:
                run.save()
            if stop and not done:
                raise Interrupted(stop, run.saved, again or _own_command())
    return run.saved


class _Run:
    """A stage under way: the engine and everything that moves with the step."""

    def __init__(self, work: Work, stage: Stage, folder: Path, name: str, engine: Engine, status: Status | None):
        self.work, self.stage, self.folder, self.name, self.engine = work, stage, folder, name, engine
        self.status = status
        self.guards = Guards(stage.guards, folder, name, teller(), work.show)
        self.meter = Meter(work.codes, work.flops_per_token)
        limits = stage.guards
        self.watchdog = Watchdog(folder, ranks.rank(), ranks.world(), limits.late_seconds, ends=limits.end_when_late,
                                 last_words=lambda text: status and status.end("resume", HUNG, text))
        self.step = 0
        self.leapt = False
        self.tokens = 0
        self.seconds = 0.0
        self.window = Window()
        self.saved: Path | None = None

    def begin(self) -> None:
        self.work.module.train()
        self.log = Log(self.folder, self.step) if ranks.rank() == 0 else None
        self.clock = self.logged_at = time.monotonic()
        self.seconds_before = self.seconds
        self.logged_tokens = self.tokens
        unit = "tokens" if per_step(self.stage)[1] == "rows" else "images"
        self.progress = Progress(self.name, self.step, self.stage.steps, unit)
        self.watchdog.start()
        self._tell()

    def _tell(self) -> None:
        if self.status:
            self.status.at(stage=self.name, step=self.step, steps=self.stage.steps, checkpoint=str(self.saved or ""))

    def one_step(self, received: int) -> int:
        """Forward to update, then metrics and preview as due; returns the signal that asks all ranks to stop, or 0."""
        factor = multiplier(self.stage.schedule, self.step - self.guards.skipped, self.stage.steps)
        self.engine.set_rate(factor)
        beat, step = self.watchdog.beat, self.step + 1
        beat(step, "data")
        with self.meter.waiting("data"):
            batch = self.guards.draw(step, self.work.batches)
        beat(step, "forward")
        losses: Losses = self.engine(tensors(batch, ranks.device()))
        beat(step, "collective")
        stop, share, loss = self._agree(losses, received)
        try:
            if not math.isfinite(loss):
                raise NotFinite(f"the loss is {loss}")
            beat(step, "backward")
            self.engine.backward(losses.total if share == 1 else losses.total * share)
            beat(step, "update")
            norm = self.engine.step()
        except NotFinite as error:
            self.guards.skip(step, str(error), batch, [losses])
        else:
            self._count(losses, norm)
            self.meter.see(batch)
            self.leapt = self.guards.after_step(step, loss) == "roll back"
        self.step += 1
        if self.step % self.stage.log_every == 0 or self.step == self.stage.steps:
            self._write(self.stage.optimizer.lr * factor)
        if self.step % self.stage.preview_every == 0 or self.step == self.stage.steps:
            beat(step, "preview")
            self._preview()
        beat(step, "end")
        return stop

    def _agree(self, losses: Losses, received: int) -> tuple[int, float, float]:
        """One collective a step: the signal to stop, this rank's share of the mean over ranks, and that mean."""
        world, weight = ranks.world(), float(losses.weight)
        sums = ranks.total([weight, float(losses.tokens), float(losses.total.detach()) * weight, *votes(received)])
        self.tokens += int(sums[1])
        share = 1.0 if world == 1 else weight * world / (sums[0] or 1.0)
        return verdict(sums[3:]), share, sums[2] / (sums[0] or 1.0)

    def roll_back(self) -> bool:
        """Back to the newest checkpoint from before a spike; False, and nothing is done, where there is none."""
        self.leapt = False
        saved = {path: int(path.name[5:]) for path in self.folder.glob("step-????????")}
        ranks.barrier()  # all ranks have looked before rank 0 moves anything
        if not any(step < self.guards.spike_step for step in saved.values()):
            teller()(f"{self.name}: there is no checkpoint from before it to go back to; going on")
            return False
        for path, step in saved.items():
            if ranks.rank() == 0 and step >= self.guards.spike_step:
                checkpoint.set_aside(path)
        found = _find(self.folder, teller())
        self.guards.condemn(checkpoint.read_state(found)["guards"])
        with self.engine.whole():
            checkpoint.load_weights(found, self.work.module)
        self.restore(found)
        if self.log:
            self.log.close()
            self.log = Log(self.folder, self.step)
        return True

    def _count(self, losses: Losses, norm: float) -> None:
        self.window.add("loss", losses.total.detach() * losses.weight, losses.weight)
        for part, (value, count) in losses.parts.items():
            self.window.add(f"loss/{part}", value, count)
        self.window.add("grad_norm", norm)

    def _write(self, lr: float) -> None:
        means = self.window.means()
        now = time.monotonic()
        self.seconds = self.seconds_before + now - self.clock
        rate = (self.tokens - self.logged_tokens) / max(now - self.logged_at, 1e-9)
        self.logged_at, self.logged_tokens = now, self.tokens
        values = {"seconds": round(self.seconds, 3), "lr": lr, **means, "tokens": self.tokens,
                  "tokens_per_second": round(rate, 1), **self.guards.metrics(),
                  **self.meter.line(self.window.counted, rate)}
        self._log(values)
        if ranks.rank() == 0:
            self.progress.show(self.step, values)

    def _log(self, values: Mapping[str, float]) -> None:
        if self.log:
            self.log.write(self.step, dict(values))

    def _preview(self) -> None:
        if self.work.preview is None or ranks.rank() > 0 or self.stage.zero == 3:  # no rank has whole weights then
            return
        began, before = time.monotonic(), checkpoint.random_state()
        self.work.module.eval()
        with torch.no_grad():
            values = self.work.preview(self.step)
        self.work.module.train()
        checkpoint.set_random_state(before)
        self.logged_at += time.monotonic() - began  # tokens per second are those of training alone
        if values:
            self._log({f"preview/{name}": value for name, value in values.items()})

    def save(self) -> None:
        self.watchdog.beat(self.step, "save")
        began = time.monotonic()
        self.seconds = self.seconds_before + began - self.clock
        shard = {"engine": self.engine.state(), "random": checkpoint.random_state(), "window": self.window.sums}
        state = {"stage": self.name, "seconds": self.seconds, "tokens": self.tokens,
                 "stream": self.work.batches.state(), "guards": self.guards.state(), "meter": self.meter.state()}
        peers = checkpoint.Ranks(ranks.rank(), ranks.world(), ranks.barrier)
        with self.engine.whole():
            self.saved = checkpoint.save(self.folder, self.step, self.work.module, shard, state, self.work.recipe,
                                         self.stage.keep, peers)
        self.logged_at += time.monotonic() - began
        self.meter.waited["save"] += time.monotonic() - began
        self._tell()

    def restore(self, path: Path) -> None:
        """Everything but the weights, which were loaded before the engine was built. Raises CheckpointError."""
        state = checkpoint.read_state(path)
        if state["stage"] != self.name or state["world"] != ranks.world():
            raise checkpoint.CheckpointError(
                f"{path} was saved by stage {state['stage']!r} on {state['world']} processes, this is {self.name!r} "
                f"on {ranks.world()}; continue it as it was, or train into another folder")
        shard = checkpoint.load_shard(path, ranks.rank())
        self.engine.restore(shard["engine"] or checkpoint.load_shard(path, 0)["engine"])
        self.work.batches.restore(state["stream"])
        self.guards.restore(state["guards"])
        self.meter.restore(state["meter"])
        self.window.sums = {name: both.to(ranks.device()) for name, both in shard["window"].items()}
        self.step, self.tokens, self.seconds, self.saved = state["step"], state["tokens"], state["seconds"], path
        checkpoint.set_random_state(shard["random"])

    def close(self) -> None:
        self.watchdog.stop()
        if self.log:
            self.log.close()


def tensors(batch, device: torch.device):
    """A batch with its numpy arrays as tensors on `device`; an array, or a dataclass, tuple or dict, one level deep."""
    def move(value):
        return torch.from_numpy(value).to(device, non_blocking=True) if isinstance(value, np.ndarray) else value

    if isinstance(batch, np.ndarray):
        return move(batch)
    if dataclasses.is_dataclass(batch):
        return dataclasses.replace(batch, **{name: move(value) for name, value in vars(batch).items()})
    if isinstance(batch, dict):
        return {name: move(value) for name, value in batch.items()}
    return tuple(move(value) for value in batch)


def _check_trains(work: Work) -> None:
    frozen = {name for name, p in work.module.named_parameters() if not p.requires_grad}
    if len(frozen) == sum(1 for _ in work.module.named_parameters()):
        raise TrainError("nothing trains in this stage: every parameter is frozen")
    for name, rows in work.new_rows.items():
        if name in frozen:
            raise TrainError(f"{rows} new rows of {name} could never learn: it is frozen in this stage; let it train")


def _find(folder: Path, say: Callable[[str], None]) -> Path | None:
    """Rank 0's choice of the checkpoint to continue from; damaged ones are reported and set aside."""
    found = None
    if ranks.rank() == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainError(f"can't write into {folder}: {error.strerror}") from error

        def damaged(path: Path, why: str) -> None:
            say(f"{why}; kept as {checkpoint.set_aside(path).name}, looking for an older one")

        found = checkpoint.newest(folder, damaged)
    return ranks.from_first(found)


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def _announce(work: Work, stage: Stage, name: str, say: Callable[[str], None]) -> None:
    count, unit = per_step(stage)
    world = ranks.world()
    say("\n".join(parameter_table(work.module, work.new_rows)))
    say(f"{name}: {stage.steps} steps of {count} {unit} = {world} processes x {count // world} {unit}, "
        f"{stage.precision}, zero {stage.zero}, {stage.optimizer.kind} lr {stage.optimizer.lr:g}")


def _own_command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
