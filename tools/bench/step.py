"""One training step: our whole loop against `transformers.Trainer`, and against a bare PyTorch loop.

    same weights, same packed batches, AdamW --run_stage | Trainer.train | bare--> losses equal --> CPU seconds per step

The three take turns, a few steps each, so that what else the machine does falls on all of them alike. Both loops run
as a person runs them, logging included (ours writes its metrics and TensorBoard, Trainer reports to nothing). The clock
is read whenever a batch is asked for, so what a run does before and after its steps is not in the figure, and what it
does between two steps all is. Trainer keeps packed documents apart by their restarting positions.
"""

import contextlib
import copy
import io
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from tools.bench.rows import Row, Turn, alone, at_most, cpu_seconds, equal, faster, in_turn, main
from unimm.config.data import Use
from unimm.config.model import FreshBackbone, SharedTable
from unimm.config.stages import AdamW, NextToken, Schedule
from unimm.model.backbone import build_backbone
from unimm.model.image_input import ImageInput
from unimm.model.unified import UnifiedModel
from unimm.sample import Batch
from unimm.train.loop import Work, run_stage
from unimm.vocab import Range, Vocab

OPTIMIZER = AdamW(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, clip=1.0)
CLOSE = 1e-5
"""The most that two loops' losses may differ at any step, in fp32."""
NOISE = 0.02
"""How far two runs of one loop lie apart on a machine shared with others."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model and its packed batches: `vocab` ids (half of them codes), documents of `document` tokens on average."""

    name: str
    model: FreshBackbone
    vocab: int
    rows: int
    seq_len: int
    document: int
    steps: int
    log_every: int = 5


SIZES = (
    Size(name="0.02 M, 2 x 32", model=FreshBackbone(width=32, layers=2, heads=2, kv_heads=1, mlp=64), vocab=64, rows=2,
         seq_len=32, document=10, steps=200),
    Size(name="0.9 M, 16 x 96", model=FreshBackbone(width=128, layers=4, heads=4, kv_heads=4, mlp=344), vocab=1024,
         rows=16, seq_len=96, document=32, steps=40),
    Size(name="0.9 M, 2 x 1024", model=FreshBackbone(width=128, layers=4, heads=4, kv_heads=4, mlp=344), vocab=1024,
         rows=2, seq_len=1024, document=256, steps=25),
    Size(name="7 M, 4 x 256", model=FreshBackbone(family="llama", width=256, layers=6, heads=4, kv_heads=4, mlp=704),
         vocab=4096, rows=4, seq_len=256, document=80, steps=20),
)
TOY = (Size(name="toy", model=FreshBackbone(width=32, layers=2, heads=2, kv_heads=1, mlp=64), vocab=64, rows=2,
            seq_len=32, document=10, steps=8, log_every=2),)


def build(size: Size) -> UnifiedModel:
    """Our model; its `backbone` is the stock transformers class."""
    half = size.vocab // 2
    vocab = Vocab(half, {}, {"visual": Range("visual", half, size.vocab - half, 1, True)}, size.vocab, size.vocab)
    torch.manual_seed(0)
    backbone = build_backbone(size.model, vocab, SharedTable(rows="normal"), {})
    return UnifiedModel(backbone, vocab, ImageInput())


def packed(size: Size, seed: int) -> Batch:
    """Full rows of random documents, every token but each document's first learned."""
    random = np.random.default_rng(seed)
    shape = (size.rows, size.seq_len)
    ids = random.integers(0, size.vocab, shape)
    document = 1 + np.cumsum(random.random(shape) < 1 / size.document, 1)
    document -= document[:, :1] - 1
    position = np.zeros(shape, np.int64)
    for t in range(1, size.seq_len):
        position[:, t] = np.where(document[:, t] == document[:, t - 1], position[:, t - 1] + 1, 0)
    targets = np.roll(ids, -1, 1)
    learn = np.zeros(shape, bool)
    learn[:, :-1] = document[:, 1:] == document[:, :-1]
    image = targets >= size.vocab // 2
    lengths = tuple(tuple(np.unique(row, return_counts=True)[1].tolist()) for row in document)
    return Batch(ids, targets, learn, position, document, image, samples=sum(map(len, lengths)), lengths=lengths)


def no_turns() -> None:
    pass


class Clock:
    """CPU time whenever a batch is asked for; before every `every`-th of them, `pause` lets the other sides go on."""

    every, pause = 5, staticmethod(no_turns)

    def __init__(self):
        self.times: list[float] = []

    def tick(self) -> None:
        if len(self.times) % self.every == 0:
            self.pause()
        self.times.append(cpu_seconds())


class Batches:
    """The stream of a run: batch i, the clock read whenever one is asked for."""

    def __init__(self, batches: list[Batch]):
        self.batches, self.at, self.clock = batches, 0, Clock()

    def next(self) -> Batch:
        self.clock.tick()
        self.at += 1
        return self.batches[self.at - 1]

    def state(self) -> dict:
        return {"at": self.at}

    def restore(self, state: dict) -> None:
        self.at = state["at"]


class Rows(torch.utils.data.Dataset):
    """The same batches row by row as Trainer wants them: labels unshifted, -100 where nothing is learned."""

    def __init__(self, batches: list[Batch]):
        self.items, self.clock, self.per_step = [], Clock(), len(batches[0].ids)
        for batch in batches:
            labels = np.full_like(batch.ids, -100)
            labels[:, 1:] = np.where(batch.learn, batch.targets, -100)[:, :-1]
            self.items += [{"input_ids": i, "labels": wanted, "position_ids": p} for i, wanted, p in
                           zip(*(torch.from_numpy(x) for x in (batch.ids, labels, batch.position)))]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        if index % self.per_step == 0:
            self.clock.tick()
        return self.items[index]


@dataclass(frozen=True)
class Run:
    """What a run gave: the loss of each line of its log, and the clock at each step's begin."""

    losses: list[float]
    times: list[float]

    def per_step(self, every: int) -> float:
        """Seconds per step: the cheapest stretch of `every` steps, of which one is logged.

        Trainer asks for two batches before its first step and then stays one ahead: the first two times are no steps.
        """
        stretches = [after - before for before, after in zip(self.times[2:], self.times[2 + every:])]
        return min(stretches) / every


def stage(size: Size, steps: int, log_every: int, **changes) -> NextToken:
    usual = {"mix": (Use(data="random"),), "optimizer": OPTIMIZER, "schedule": Schedule(warmup=0, anneal=0),
             "save_every": 10**9, "preview_every": 10**9}
    return NextToken(steps=steps, seq_len=size.seq_len, step_tokens=size.rows * size.seq_len, log_every=log_every,
                     **(usual | changes))


def ours(module: UnifiedModel, size: Size, batches: list[Batch], log_every: int,
         engine: Literal["auto", "plain"] = "auto", **changes) -> Run:
    """`run_stage` over the batches, in a folder of its own. Trains `module` in place."""
    stream = Batches(batches)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        run_stage(Work(module, stream), stage(size, len(batches), log_every, **changes), Path(folder), engine=engine)
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return Run([line["loss"] for line in lines if "loss" in line], stream.clock.times)


def stock(module: UnifiedModel, attention: str = "sdpa") -> nn.Module:
    """The transformers model that a person would train: the same class and weights, its own attention."""
    config = copy.deepcopy(module.backbone.config)
    config._attn_implementation = attention
    peer = type(module.backbone)(config)
    peer.load_state_dict(module.backbone.state_dict())
    return peer


def theirs(model: nn.Module, batches: list[Batch], log_every: int, on_step: Callable[[int], None] = lambda done: None,
           **changes) -> Run:
    """`Trainer.train` over the batches with what `stage` says, in a folder of its own. Trains `model` in place."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Told(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            on_step(state.global_step)

    data = Rows(batches)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        given = TrainingArguments(
            folder, per_device_train_batch_size=data.per_step, max_steps=len(batches), learning_rate=OPTIMIZER.lr,
            adam_beta1=OPTIMIZER.betas[0], adam_beta2=OPTIMIZER.betas[1], weight_decay=OPTIMIZER.weight_decay,
            max_grad_norm=OPTIMIZER.clip, lr_scheduler_type="constant", optim="adamw_torch_fused",
            logging_steps=log_every, save_strategy="no", report_to="none", disable_tqdm=True,
            train_sampling_strategy="sequential", remove_unused_columns=False,
            **({"use_cpu": True, "dataloader_pin_memory": False} if not torch.cuda.is_available() else {}) | changes)
        trainer = Trainer(model, given, train_dataset=data)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Told())
        trainer.train()
    return Run([line["loss"] for line in trainer.state.log_history if "loss" in line], data.clock.times)


def bare(module: UnifiedModel, batches: list[Batch], log_every: int) -> Run:
    """The least that can train: forward, backward, clip, update; no log, no check, one number kept."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=OPTIMIZER.lr, betas=OPTIMIZER.betas, weight_decay=0.0,
                                  fused=True)
    losses, clock = [], Clock()
    for number, batch in enumerate(batches, 1):
        clock.tick()
        loss = module(batch).total / module.weigh(batch).learned
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), OPTIMIZER.clip)
        optimizer.step()
        optimizer.zero_grad()
        if number % log_every == 0:
            losses.append(loss.item())
    return Run(losses, clock.times)


def rows(toy: bool = False) -> Iterable[Row]:
    for size in TOY if toy else SIZES:
        yield from compare(size)


def taking_turns(run: Callable[[], Run], every: int, turn: Turn) -> Run:
    """The run, its clock giving the turn away before every stretch of so many steps."""
    def pause() -> None:
        turn.give()
        turn.take()

    turn.take()
    Clock.every, Clock.pause = every, staticmethod(pause)
    return run()


def compare(size: Size) -> Iterable[Row]:
    start = build(size)
    sides = {"ours": lambda *given: ours(start, size, *given), "Trainer": lambda *given: theirs(stock(start), *given),
             "bare": lambda *given: bare(start, *given)}
    # A child each: DeepSpeed leaves a process group behind, for which Trainer would wrap its model in DDP.
    few = [packed(size, i) for i in range(6)]
    losses = {name: alone(partial(run, few, 1)).losses for name, run in sides.items()}
    for name in ("Trainer", "bare"):
        equal(f"losses of ours and {name}, step by step", losses["ours"], losses[name], CLOSE)
    batches = [packed(size, i) for i in range(size.steps)]
    runs = in_turn([partial(taking_turns, partial(run, batches, size.log_every), size.log_every)
                    for run in sides.values()])
    best = {name: run.per_step(size.log_every) * 1e3 for name, run in zip(sides, runs, strict=True)}
    claim, mine = f"training step, {size.name}", best["ours"]
    yield faster(claim, "transformers.Trainer", mine, best["Trainer"], "CPU ms", 1 - NOISE)
    yield at_most(claim, "bare PyTorch loop", mine, best["bare"], "CPU ms", 1.1)


if __name__ == "__main__":
    main(rows)
