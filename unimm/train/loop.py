"""One stage, from its first step or its newest checkpoint to its last step; one loop for every objective.

    batch --> slots --module--> Losses --engine--> gradients, added up --> clip --> update --> metrics, checkpoint

What a step learns depends on the step alone, not on how it is divided: the weight of all its slots on all ranks is
known before the first forward, and every slot starts all random generators from (seed, step, slot).
"""

import os
import random
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from unimm.checkpoint.folders import CheckpointError
from unimm.checkpoint.read import Pieces, load_buffers, load_weights, read_recipe, read_state, take_up
from unimm.checkpoint.write import Saver
from unimm.config.stages import NextToken, PictureStage
from unimm.disk import writing
from unimm.hardware import peak_flops
from unimm.losses import Losses
from unimm.status import HUNG, Status
from unimm.train import ranks, table, trains
from unimm.train.engine import Engine, NotFinite, build_engine
from unimm.train.guards import Guards
from unimm.train.metrics import Flops, Log, Meter, Progress
from unimm.train.optimizer import multiplier
from unimm.train.shares import Shares, shares
from unimm.train.signals import Interrupted, Signals, verdict, votes
from unimm.train.watchdog import Watchdog


class Stream(Protocol):
    """Where batches come from: this rank's rows of a step, with a length, and slices of rows that are batches again.

    `state` is small JSON, alike on all ranks, as of the last batch given out.
    """

    def next(self): ...

    def state(self) -> dict: ...

    def restore(self, state: dict) -> None: ...


class Work(NamedTuple):
    """What a stage trains and on what.

    module    called with a slot as it comes from the stream, on the host, gives Losses; its method `weigh` says of the
              slot before that what it weighs (`unimm.losses.Weight`)
    batches   this rank's share of each optimizer step
    preview   called on rank 0 every `preview_every` steps and at the end, module in eval mode, without gradients, its
              weights those that the stage would leave; may return scalars for the metrics
    new_rows  parameter name -> which of its rows are new and must learn
    parts     what recipes call a part -> names of parameters, beyond `unimm.config.trains`'s own words
    recipe    the resolved recipe as JSON values, kept in every checkpoint
    show      a batch in words, as JSON values, for the file of one that went wrong
    codes     codebook -> its ids (first, one past the last), to log how evenly image targets use it
    flops     asked once it is settled what trains: what a token (or image) costs, for the MFU; None: not known
    """

    module: nn.Module
    batches: Stream
    preview: Callable[[int], Mapping[str, float] | None] | None = None
    new_rows: Mapping[str, range] = {}
    parts: Mapping[str, list[str]] = {}
    recipe: Mapping = {}
    show: Callable[[object], dict] | None = None
    codes: Mapping[str, tuple[int, int]] = {}
    flops: Callable[[], Flops | None] | None = None


def run_stage(work: Work, stage: NextToken | PictureStage, folder: Path, *, name: str = "train",
              again: str = "the same command", engine: Literal["auto", "deepspeed", "plain"] = "auto",
              status: Status | None = None) -> Path:
    """Train to the stage's last step; returns the final checkpoint, which has all that was learned.

    `work.module` is spent by it: it may be left without weights. Continues from the newest whole checkpoint in
    `folder`, if any. Every rank calls this together. `again` is the command that continues after an interruption.
    `status` is kept up.

    Raises ConfigError (uneven shares), TrainError (nothing trains, NaN), CheckpointError, Interrupted.
    """
    ranks.start()
    cut = shares(stage, ranks.world())
    torch.manual_seed(stage.seed)  # adapters start alike on every rank
    trained = trains.apply(work.module, stage.train, work.new_rows, work.parts, f"stages.{name}.train")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    found = _find(folder)
    tell = partial(status.at, stage=name, steps=stage.steps) if status else lambda **facts: None
    if found and read_state(found)["step"] >= stage.steps:
        ranks.say(f"{name}: already done, {found}")
        tell(step=stage.steps, checkpoint=str(found))
        return found
    if found:
        load_weights(found, work.module)
    work.module.to(ranks.device())
    ranks.say("\n".join(table.lines(table.rows(work.module, stage, trained, cut.ranks), stage, cut.ranks)))
    ranks.say(f"{name}: {stage.steps:,} steps; {cut}; {stage.precision}, zero {stage.zero}, "
              f"{stage.optimizer.kind} lr {stage.optimizer.lr:g}")
    peak = peak_flops(ranks.device_name())
    flops = work.flops() if work.flops and peak else None  # before ZeRO-3 takes the weights apart
    built = build_engine(work.module, stage, engine, trained)
    run = _Run(work, stage, cut, folder, name, Meter(work.codes, flops, peak), built, status, tell)
    if found:
        run.restore(found)
        ranks.say(f"{name}: continuing after step {run.step} from {found}")
        if read_recipe(found) != work.recipe:
            ranks.say(f"{name}: the recipe differs from the one it was saved with ({found / 'recipe.json'})")
    with run, Signals() as signals:
        while run.step < stage.steps:
            stop = run.one_step(signals)
            done = run.step == stage.steps
            if run.guards.leapt is not None and run.roll_back():
                continue  # a signal is still there at the next step
            if done or stop or run.step % stage.save_every == 0:
                run.save()
            if stop and not done:
                raise Interrupted(stop, run.saver.wait(), again)
        run.saved = run.saver.wait()
    run.engine.close()
    return run.saved


class _Run:
    """A stage under way: the engine and everything that moves with the step."""

    def __init__(self, work: Work, stage: NextToken | PictureStage, cut: Shares, folder: Path, name: str, meter: Meter,
                 engine: Engine, status: Status | None, tell: Callable[..., None]):
        self.work, self.stage, self.shares, self.folder, self.name = work, stage, cut, folder, name
        self.meter, self.engine, self.status, self.tell = meter, engine, status, tell
        self.step, self.saved = 0, None
        behind = partial(ranks.gather, group=ranks.own_group())
        self.saver = Saver(folder, stage.keep, stage.keep_every, ranks.rank(), ranks.world(), behind)
        self.guards = Guards(stage.guards, folder, name, work.show)
        self.watchdog = Watchdog(folder, ranks.rank(), ranks.world(), stage.guards.late_seconds,
                                 self._end if stage.guards.end_when_late else None)

    def _end(self, why: str) -> None:
        """Leave from another thread than the one that hangs."""
        if self.status:
            self.status.end("resume", HUNG, why)
        os._exit(HUNG)

    def one_step(self, signals: Signals) -> int:
        """Forward to update, then metrics and preview as due; returns the signal that asks all ranks to stop, or 0.

        Raises NotFinite where too many steps were refused, and CheckpointError where the save behind has failed.
        """
        factor = multiplier(self.stage.schedule, self.step - self.guards.skipped, self.stage.steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self.step += 1
        self.watchdog.beat(self.step, "data")
        with self.meter.waiting("data"):
            batch = self.guards.draw(self.work.batches)
        slots = self.shares.slots(batch, ranks.rank())
        self.watchdog.beat(self.step, "collective")
        weights = [self.work.module.weigh(slot) for slot in slots.values()]
        # What all ranks know before a step: the weight of its slots, and the signal to stop.
        weight, read, failed, *asked = ranks.total([
            sum(w.learned for w in weights), sum(w.read for w in weights), self.saver.failed, *votes(signals.received)])
        if failed:
            self.saver.wait()
        self.meter.tokens += int(read)
        losses = [self._learn(slot, number, weight, last=number == max(slots)) for number, slot in slots.items()]
        self.watchdog.beat(self.step, "update")
        try:
            norm = self.engine.step()
        except NotFinite as error:
            self.guards.skip(self.step, str(error), batch, losses)
        else:
            own = sum(float(each.total) for each in losses)  # the update has waited for them
            # Every rank adds its share of the weight: the average over ranks and steps is then that over positions.
            self.meter.add("loss", own, weight / ranks.world())
            for part, (value, count) in [named for each in losses for named in each.parts.items()]:
                self.meter.add(f"loss/{part}", value, count)
            self.meter.add("grad_norm", norm)
            self.guards.judge(self.step, ranks.total([own])[0] / (weight or 1.0))
            self.meter.see(batch)
        last = self.step == self.stage.steps
        if last or self.step % self.stage.log_every == 0:
            values = {"lr": self.stage.optimizer.lr * factor, **self.meter.line(), **self.guards.metrics()}
            self.log.write(self.step, values)
            self.progress.show(self.step, values)
        if self.work.preview and (last or self.step % self.stage.preview_every == 0):
            self._preview()
        self.watchdog.beat(self.step, "end")
        return verdict(asked)

    def roll_back(self) -> bool:
        """Back to the newest checkpoint, which is from before the spike; False, and nothing is done, without one."""
        if self.saved is None:
            self.guards.leapt = None
            ranks.say(f"{self.name}: there is no checkpoint to go back to; going on")
            return False
        self.saver.wait()
        found = _find(self.folder)
        self.guards.condemn(read_state(found)["guards"])
        self.restore(found)
        load_buffers(found, self.work.module)
        self.log.close()
        self.log = Log(self.folder, self.step)
        return True

    def _learn(self, slot, number: int, weight: float, last: bool) -> Losses:
        """One forward and backward; what is left of its losses is without a graph."""
        seed_slot(self.stage.seed, self.step - 1, number)
        self.watchdog.beat(self.step, "forward")
        losses: Losses = self.engine(slot, last)
        self.watchdog.beat(self.step, "backward")
        self.engine.backward(losses.total / (weight or 1.0))
        return Losses(losses.total.detach(), losses.parts)

    def _preview(self) -> None:
        self.watchdog.beat(self.step, "preview")
        with self.meter.waiting("preview"), self.engine.masters.shown(), torch.no_grad():
            self.work.module.eval()
            values = self.work.preview(self.step) if ranks.rank() == 0 else None
            self.work.module.train()
        if values:
            self.log.write(self.step, {f"preview/{name}": value for name, value in values.items()})

    def save(self) -> None:
        self.watchdog.beat(self.step, "save")
        masters = self.engine.masters
        with self.meter.waiting("save"):
            state = {"stage": self.name, "zero": self.stage.zero, "updates": masters.updates,
                     "stream": self.work.batches.state(), "guards": self.guards.state(), "meter": self.meter.state()}
            self.saved = self.saver.save(self.step, masters.weights(), masters.pieces(), state, self.work.recipe)
        self.tell(step=self.step, checkpoint=str(self.saved))

    def restore(self, path: Path) -> None:
        """Everything but the weights that don't train, which were loaded before the engine was built.

        Raises CheckpointError where it is another stage's, ConfigError where it was of another stream.
        """
        state = read_state(path)
        if state["stage"] != self.name:
            raise CheckpointError(f"{path} was saved by stage {state['stage']!r}, this is {self.name!r}; "
                                  "continue that one, or train into another folder")
        self.engine.restore(Pieces(path), state["updates"])
        self.work.batches.restore(state["stream"])
        self.guards.restore(state["guards"])
        self.meter.restore(state["meter"])
        self.step, self.saved = state["step"], path

    def __enter__(self) -> "_Run":
        self.work.module.train()
        self.log = Log(self.folder, self.step)
        self.progress = Progress(self.name, self.step, self.stage.steps, "tokens" if self.shares.tokens else "images")
        self.watchdog.start()
        self.tell(step=self.step, checkpoint=str(self.saved or ""))
        return self

    def __exit__(self, kind, *error) -> None:
        self.watchdog.stop()
        self.log.close()
        if kind is NotFinite:  # on all ranks alike, so that a checkpoint under way can be finished
            self.saver.wait()


def _find(folder: Path) -> Path | None:
    """Rank 0's choice of the checkpoint to continue from; damaged ones are reported and set aside."""
    return ranks.from_first(take_up(folder, ranks.say) if ranks.rank() == 0 else None)


def seed_slot(seed: int, step: int, slot: int) -> None:
    """Start every generator that a forward may draw from, so that none of their states need be saved."""
    number = int(np.random.SeedSequence((seed, step, slot)).generate_state(1, np.uint64)[0])
    # Not torch.manual_seed: for every kind of device that is not there it would format a stack trace, 0.6 ms in all.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)
