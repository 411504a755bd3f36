"""Two toy objectives with uneven counts, and a program that trains them: the tests start it as real processes.

    python train_toys.py MODE FOLDER
"""

import json
import math
import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from unimm.checkpoint.read import read_state
from unimm.config.data import Use
from unimm.config.stages import AdamW, Guards, Muon, NextToken, Schedule
from unimm.losses import Losses, Weight
from unimm.status import Status, told
from unimm.train import ranks
from unimm.train.engine import NotFinite, build_engine
from unimm.train.loop import Work, run_stage
from unimm.train.signals import Interrupted, ended

torch.set_num_threads(1)
ROWS = 8


class Regression(nn.Module):
    """Mean squared error of a small net, with dropout so that the random state matters."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(6, 1)

    def forward(self, batch):
        batch = tensors(batch)
        x, y = batch.x, batch.y
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        error = (self.head(self.dropout(x)).float() - y).square().squeeze(1)
        return Losses(error.sum(), {"all": (error.detach().sum(), len(error))})

    def weigh(self, batch):
        return Weight(float(len(batch)), len(batch))


class ToyLM(nn.Module):
    """A bigram model; the rows supervise unequal numbers of positions, text and image apart."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(12, 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 8, bias=False) for _ in range(2)])
        self.head = nn.Linear(8, 12, bias=False)

    def forward(self, batch):
        batch = tensors(batch)
        h = self.embed(batch.ids)
        for block in self.blocks:
            h = h + torch.tanh(block(h))
        each = F.cross_entropy(self.head(h[batch.learn]).float(), batch.targets[batch.learn], reduction="none")
        image = batch.targets[batch.learn] >= 6
        parts = {"text": (each.detach()[~image].sum(), (~image).sum()),
                 "image": (each.detach()[image].sum(), image.sum())}
        return Losses(each.sum(), parts)

    def weigh(self, batch):
        return Weight(float(batch.learn.sum()), batch.ids.size)


class Rows:
    """A batch that can be cut: every field an array over rows."""

    def __len__(self):
        return len(next(iter(vars(self).values())))

    def __getitem__(self, rows):
        return replace(self, **{name: value[rows] for name, value in vars(self).items()})


def tensors(batch: Rows) -> Rows:
    """On the device of this rank."""
    arrays = {name: torch.as_tensor(value, device=ranks.device()) for name, value in vars(batch).items()}
    return replace(batch, **arrays)


@dataclass(frozen=True)
class Points(Rows):
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Tokens(Rows):
    ids: np.ndarray
    targets: np.ndarray
    learn: np.ndarray


class Stream:
    """This rank's rows of global batch i, a function of i alone; `at` is called with i before it is given out."""

    def __init__(self, objective, at=lambda i: None):
        self.objective, self.at, self.i = objective, at, 0

    def next(self):
        self.at(self.i)
        random = np.random.default_rng(self.i)
        self.i += 1
        share = slice(ROWS * ranks.rank() // ranks.world(), ROWS * (ranks.rank() + 1) // ranks.world())
        if self.objective == "regression":
            x = random.standard_normal((ROWS, 6), dtype=np.float32)
            return Points(x, x[:, :1] * 2 + 1)[share]
        ids = random.integers(0, 12, (ROWS, 5))
        learn = np.arange(5) < random.integers(1, 6, (ROWS, 1))
        return Tokens(ids, (ids * 5 + 1) % 12, learn)[share]

    def state(self):
        return {"i": self.i}

    def restore(self, state):
        self.i = state["i"]


class Spoilt(Stream):
    """Regression batches; those whose number is in `bad` times `by`, those in `without` never were there."""

    def __init__(self, bad=(), by=math.nan, without=()):
        super().__init__("regression")
        self.bad, self.by, self.without = set(bad), by, set(without)

    def next(self):
        while self.i in self.without:
            self.i += 1
        number = self.i
        batch = super().next()
        return replace(batch, x=batch.x * np.float32(self.by)) if number in self.bad else batch


def stage(**changes) -> NextToken:
    usual = {"steps": 12, "step_tokens": ROWS * 5, "seq_len": 5, "optimizer": AdamW(lr=0.01), "log_every": 1,
             "preview_every": 5, "save_every": 4, "schedule": Schedule(warmup=0.0, anneal=0.5)}
    return NextToken(mix=(Use(data="toy"),), **(usual | changes))


def train(folder, objective="lm", engine="plain", at=lambda i: None, dropout=0.0, again=None, status=None,
          **changes) -> Path:
    """Train a toy in `folder`; a preview that draws random numbers rides along."""
    module = ToyLM() if objective == "lm" else Regression(dropout)
    work = Work(module, Stream(objective, at), preview=lambda step: {"draw": torch.rand(1).item()})
    return run_stage(work, stage(**changes), Path(folder), engine=engine, again=again, status=status)


def curve(folder, key="loss") -> list[float]:
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def outcome(path: Path, rank=0):
    """Everything a run ends with that must not depend on interruptions, as comparable text."""
    pieces = path / f"training-{rank:05d}.safetensors"
    shard = pieces.read_bytes() if pieces.exists() else b""  # without ZeRO rank 0 saves for all
    weights = (path / "model.safetensors").read_bytes()
    lines = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "seconds/data", "seconds/save", "seconds/preview", "tokens_per_second")
    timeless = [{k: v for k, v in line.items() if k not in timed} for line in lines]
    return weights.hex(), shard.hex(), read_state(path)["stream"], timeless


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def forked(action) -> int:
    """Run `action` in a child process; its exit code, negative if a signal killed it."""
    child = os.fork()
    if child == 0:
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at_sync(count: int):
    """Make the count-th sync or rename of a checkpoint a SIGKILL."""
    left = [count]
    for name in ("fsync", "rename"):
        def dying(*args, real=os.__dict__[name]):
            left[0] -= 1
            if left[0] == 0:
                kill()
            return real(*args)

        setattr(os, name, dying)


def mode_faults(folder: Path):
    """Kill training in each of many places, resume, and print how many ended as the undisturbed run did."""
    import torch._dynamo
    import torch.utils.tensorboard  # noqa: F401  (both once, here, and not in each child)

    options = {"objective": "regression", "dropout": 0.3, "optimizer": Muon(), "log_every": 3}
    assert forked(lambda: train(folder / "whole", **options)) == 0
    want = outcome(folder / "whole" / "step-00000012")
    # A checkpoint has eight syncs and renames: all of the second's, some of the first's and the last's, which also
    # renames the first to remove it.
    places = [("step", i) for i in (0, 3, 4, 6, 11)] + [("sync", i) for i in (1, 7, 8, *range(9, 17), 18, 23, 24, 25)]
    for kind, i in places:
        there = folder / f"{kind}-{i}"

        def doomed(kind=kind, i=i, there=there):
            if kind == "sync":
                die_at_sync(i)
            train(there, at=lambda now: kill() if (kind, i) == ("step", now) else None, **options)

        died = forked(doomed)
        assert died == -signal.SIGKILL, (kind, i, died)
        assert forked(lambda there=there: train(there, **options)) == 0, (kind, i)
        assert outcome(there / "step-00000012") == want, (kind, i)
    print("SURVIVED", len(places))


def mode_interrupt(folder: Path):
    """Train for ever, saying when it is under way; ends as the command line ends an interrupted run."""
    def under_way(i):
        if i == 3:
            print(f"UNDER WAY {os.getpid()}\n", end="", flush=True)  # one write: ranks share the pipe

    engine = "deepspeed" if ranks.world() > 1 else "plain"
    ever = {"steps": 10**7, "save_every": 10**7, "log_every": 10**6}
    try:
        with told(Status(folder, ranks.rank(), ranks.world()), ended) as status:
            train(folder, engine=engine, at=under_way, again="unimm train toy", status=status, **ever)
    except Interrupted as stopped:
        print(stopped, flush=True)
        ranks.barrier()
        ranks.leave(stopped.code)
        sys.exit(stopped.code)


def explode(engine, module, bad: float) -> bool:
    """Whether a loss that is `bad` is refused and leaves the weights alone."""
    before = [p.detach().clone() for p in module.parameters()]
    x = torch.ones(ROWS, 6)
    losses = engine(Points(x, x[:, :1]))
    engine.backward(losses.total * bad)
    try:
        engine.step()
    except NotFinite:
        return all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    return False


def moved(engine, module) -> tuple[float, float]:
    """The gradient norm that a step reports, and the farthest that a weight moves in it."""
    before = [p.detach().clone() for p in module.parameters()]
    x = torch.ones(ROWS, 6)
    engine.backward(engine(Points(x, x[:, :1])).total / ROWS)
    norm = engine.step()
    return norm, max(float((a - b).detach().abs().max()) for a, b in zip(before, module.parameters(), strict=True))


def mode_deepspeed(folder: Path):
    """DeepSpeed in one process against the plain engine; then its guards."""
    found = {}
    for name, changes in CURVES.items():
        train(folder / name, engine="deepspeed", **changes)
        found[name] = curve(folder / name)
    for zero, precision, bad in ((0, "fp32", "nan"), (0, "bf16", "inf"), (1, "fp32", "inf"), (2, "bf16", "nan")):
        module = Regression()
        engine = build_engine(module, stage(zero=zero, precision=precision), "deepspeed")
        found[f"refuses {bad} in {precision} at zero {zero}"] = explode(engine, module, float(bad))
    for zero in (0, 1):
        for limit in (1e9, 1e-9):
            module = Regression()
            engine = build_engine(module, stage(zero=zero, optimizer=AdamW(lr=0.01, clip=limit)), "deepspeed")
            found[f"clip {limit} at zero {zero}"] = moved(engine, module)
    (folder / "found.json").write_text(json.dumps(found))


CURVES = {
    "lm": {},
    "regression": {"objective": "regression"},
    "muon": {"optimizer": Muon()},
    "bf16": {"precision": "bf16"},
}


class SpoiltOnOne(Spoilt):
    """On rank 1 alone, batch 8 is NaN, and batch 5 marked for `Brittle`."""

    def next(self):
        number = self.i
        batch = super().next()
        if ranks.rank() == 1 and number in (5, 8):
            batch.x[0, 0] = MARK if number == 5 else math.nan
        return batch


MARK = 1234.5


class Brittle(Regression):
    """A finite loss whose gradient is NaN where the batch is marked: the slope of a root at 0, times 0."""

    def forward(self, batch):
        losses = super().forward(batch)
        if (batch.x[0, 0] == MARK).item():
            return replace(losses, total=losses.total + (losses.total * 0).sqrt())
        return losses


def skips(folder: Path, name: str) -> int:
    """Two ranks: a gradient, then a loss, that is NaN on one of them, against a run whose stream had neither batch;
    at how many ZeRO stages both are alike."""
    alike = 0
    for zero in (0, 1, 2, 3):
        outcomes = []
        runs = ((f"zero {zero}", SpoiltOnOne(), 12), (f"without {zero}", Spoilt(without=(5, 8)), 10))
        for each, stream, steps in runs:
            flat = stage(steps=steps, zero=zero, schedule=Schedule(warmup=0.0, anneal=0.0))
            path = run_stage(Work(Brittle(), stream), flat, folder / name / each, engine="deepspeed")
            state = [file.read_bytes() for file in sorted(path.glob("*.safetensors"))]
            outcomes.append((state, curve(folder / name / each)))
            assert read_state(path)["guards"]["skipped"] == steps - 10
        assert outcomes[0] == outcomes[1], zero
        alike += 1
    return alike


def rolls(folder: Path, name: str) -> int:
    """Two ranks: a spike and the rollback, against a run whose stream had neither batch; at how many ZeRO stages both
    are alike."""
    alike, limits = 0, Guards(spike=10, spike_window=8, rollbacks=1, rollback_batches=2)
    for zero in (0, 2, 3):
        outcomes = []
        for each, stream in ((f"zero {zero}", Spoilt([13], 40.0)), (f"without {zero}", Spoilt(without=[12, 13]))):
            changes = stage(steps=18, zero=zero, save_every=9, guards=limits, precision="bf16" if zero == 2 else "fp32")
            path = run_stage(Work(Regression(0.3), stream), changes, folder / name / each, engine="deepspeed")
            state = [file.read_bytes() for file in sorted(path.glob("*.safetensors"))]
            outcomes.append((state, curve(folder / name / each)))
            assert curve(folder / name / each, "rollbacks")[-1] == (stream.bad == {13})
        assert outcomes[0] == outcomes[1], zero
        alike += 1
    return alike


if __name__ == "__main__":
    {"faults": mode_faults, "interrupt": mode_interrupt, "deepspeed": mode_deepspeed}[sys.argv[1]](Path(sys.argv[2]))
    ranks.leave()
