"""What one rank of a faulted run does: a real stage on a real stream, writing down every sample it learns from.

The main process has imported everything and computed nothing; ranks are forked from it, which takes milliseconds where
a start takes ten seconds. Forking is safe there because gloo, autograd and the writer start their threads in the ranks.

    torchrun ... -m tools.faults.rank BASE FOLDER KIND BATCH SIGNAL    by a launcher: waits for a signal at a batch
"""

import json
import os
import random
import signal
import sys
import time
import traceback
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional as F

from recipes.demo import recipe as demo
from unimm.config.model import FreshBackbone
from unimm.config.quantizers import VQ
from unimm.config.recipe import Recipe
from unimm.config.stages import AdamW, Guards, Muon, NextToken, Reconstruct, Schedule
from unimm.config.tokens import Codebook, SentencePieceText
from unimm.images.losses import Reconstructing
from unimm.images.tokenizer import build_tokenizer, fingerprint, load_tokenizer
from unimm.status import Status, told
from unimm.stream.batches import Batches, PixelBatches, images_of, make_batch
from unimm.stream.mixture import Mixture
from unimm.stream.shards import open_shards
from unimm.stream.sources import open_source
from unimm.system import TOKENIZER_FOLDER, layout_of, new_model, text_of
from unimm.train import ranks
from unimm.train.loop import Work, run_stage
from unimm.train.signals import ended

STEPS, SAVE_EVERY, STAGE = 12, 4, "stage"
LM = "pretrain"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How a run trains."""

    world: int = 2
    zero: int = 0
    engine: str = "deepspeed"
    images: bool = False
    """Train the image tokenizer, whose codebook (a buffer) learns by averages, instead of the language model."""
    stage: dict = field(default_factory=dict)

    def __str__(self) -> str:
        what = "VQ tokenizer, " if self.images else ""
        return f"{what}{self.world} rank{'s' * (self.world > 1)}, zero {self.zero}, {self.engine}"


KINDS = {
    "zero 0": Kind(zero=0, stage={"optimizer": Muon(), "ema": 0.9}),
    "zero 1": Kind(zero=1),
    "zero 2": Kind(zero=2, stage={"precision": "bf16", "ema": 0.9}),
    "zero 3": Kind(zero=3, stage={"recompute": True}),
    "zero 2, Muon": Kind(zero=2, stage={"optimizer": Muon()}),
    "one rank": Kind(world=1, engine="plain", stage={"optimizer": Muon(), "ema": 0.9}),
    "one rank, zero 2": Kind(world=1, zero=2),
    "codebook": Kind(images=True),
}


def small() -> Recipe:
    """The demo's system and data, as small as they can be."""
    counts = {"pairs": 200, "chats": 100, "edits": 4}
    stages = {"tokenizer": replace(demo.stages["tokenizer"], steps=2, batch=4, save_every=2, preview_every=9),
              LM: demo.stages[LM]}
    return replace(
        demo, stages=stages, data={name: replace(source, count=counts[name]) for name, source in demo.data.items()},
        text=SentencePieceText(vocab_size=400, texts=200), codebooks=(Codebook(name="visual", size=32),),
        backbone=FreshBackbone(width=32, layers=2, heads=2, kv_heads=2, mlp=64),
        image_tokenizer=replace(demo.image_tokenizer, width=16, quantizer=VQ(size=32, dim=16)))


class Rank:
    """This rank under way. `before_batch` is what a fault hangs on: called with the number of the batch, from 0."""

    def __init__(self, folder: Path):
        self.folder, self.batch = folder, -1
        self.before_batch: Callable[[int], None] = lambda n: None
        self.change: Callable[[object], object] = lambda batch: batch
        self.losses: Callable[[object], object] = lambda losses: losses
        self.without: set[int] = set()
        folder.mkdir(parents=True, exist_ok=True)
        self.notes = None

    def note(self, **facts) -> None:
        if self.notes is None:
            name = self.folder / f"learned-{ranks.world()}-{ranks.rank()}.jsonl"
            self.notes = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(self.notes, (json.dumps(facts) + "\n").encode())

    def hook(self, module) -> None:
        """Write down the state of all generators where a slot begins; dropout makes the weights depend on them."""
        def random_state(module, arguments):
            states = (torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes(),
                      repr(random.getstate()).encode())
            self.note(n=self.batch, random=zlib.crc32(b"".join(states)))

        module.register_forward_pre_hook(random_state)
        module.register_forward_hook(lambda module, arguments, losses: self.losses(losses))


class Recorded:
    """A stream that writes down which samples each row holds; its state counts the batches."""

    def __init__(self, inner, rank: Rank):
        self.inner, self.rank, self.given = inner, rank, 0

    def next(self):
        while self.given in self.rank.without:
            self.inner.next()
            self.given += 1
        self.rank.batch = self.given
        self.rank.before_batch(self.given)
        batch, rows = self.draw()
        self.rank.note(n=self.given, rows=rows)
        self.given += 1
        return self.rank.change(batch)

    def draw(self):
        batch = self.inner.next()
        return batch, [zlib.crc32(row.tobytes()) for row in batch.pixels]

    def state(self) -> dict:
        return {"given": self.given, "inner": self.inner.state()}

    def restore(self, state: dict) -> None:
        self.inner.restore(state["inner"])
        self.given = state["given"]


class RecordedDocuments(Recorded):
    """The same of packed documents: the mixture's indices, found by the documents that the lanes hand on."""

    def draw(self):
        inner = self.inner
        waiting = [{id(document): index for index, document in lane.waiting.items()} for lane in inner.lanes]
        drawn: list[dict] = []
        for lane, known in zip(inner.lanes, waiting, strict=True):
            def noting(index, draw=inner._draw, known=known):
                document = draw(index)
                known[id(document)] = index
                return document

            lane.draw = noting
            drawn.append(known)
        rows = [lane.row() for lane in inner.lanes]
        batch = make_batch(rows, inner.stage.seq_len, inner.layout.pad_id, inner.layout.vocab.is_code)
        return batch, [[known[id(document)] for document in row] for row, known in zip(rows, drawn, strict=True)]


def stage_of(kind: Kind):
    common = {"steps": STEPS, "save_every": SAVE_EVERY, "log_every": 1, "preview_every": 10**6, "keep": 2,
              "optimizer": AdamW(lr=3e-3), "schedule": Schedule(warmup=0.1, anneal=0.5), "zero": kind.zero,
              "guards": Guards(late_seconds=0), "micro": 1}
    if kind.images:
        return Reconstruct(mix=demo.stages["tokenizer"].mix, batch=8, **(common | {"micro": 4} | kind.stage))
    return NextToken(mix=demo.stages[LM].mix, step_tokens=4 * 160, seq_len=160, **(common | kind.stage))


def language(base: Path, stage: NextToken, rank: Rank) -> Work:
    recipe = small()
    tokenizer = load_tokenizer(base / TOKENIZER_FOLDER).eval()
    layout = layout_of(recipe, text_of(recipe, base))
    torch.manual_seed(stage.seed)
    model = new_model(recipe, layout, tokenizer)
    model.image_weight, model.z_loss = stage.image_weight, stage.z_loss
    if stage.recompute:
        from unimm.model.backbone import recompute_layers

        recompute_layers(model.backbone, reentrant=stage.zero == 3)
    model.image_input.register_forward_hook(
        lambda module, arguments, out: (F.dropout(out[0], 0.1, module.training), *out[1:]))
    shards = {use.data: open_shards(base / "codes" / use.data, fingerprint(tokenizer)) for use in stage.mix}
    batches = Batches(Mixture(shards, stage.mix, stage.seed), layout, stage, ranks.rank(), ranks.world(), ranks.gather)
    return Work(model, RecordedDocuments(batches, rank), recipe={"name": "faults"},
                show=lambda batch: {"rows": len(batch)})


def tokenizer_of(stage: Reconstruct, rank: Rank) -> Work:
    recipe = small()
    torch.manual_seed(stage.seed)
    datasets = [images_of(open_source(recipe.data[use.data]), recipe.image_tokenizer.image)[0] for use in stage.mix]
    batches = PixelBatches(datasets, [use.weight for use in stage.mix], stage.batch, stage.seed, ranks.rank(),
                           ranks.world())
    return Work(Reconstructing(build_tokenizer(recipe.image_tokenizer).train()), Recorded(batches, rank),
                recipe={"name": "faults"})


def train(base: Path, folder: Path, kind: Kind, trouble: Callable[[Rank], None], status: Status | None) -> None:
    """The stage to its end, in folder/stage; `trouble` says what goes wrong."""
    rank = Rank(folder / "notes")
    trouble(rank)
    stage = stage_of(kind)
    work = tokenizer_of(stage, rank) if kind.images else language(base, stage, rank)
    rank.hook(work.module)
    run_stage(work, stage, folder / STAGE, name=STAGE, engine=kind.engine, again="the same command", status=status)


def run_rank(base: Path, folder: Path, kind: Kind, trouble: Callable[[Rank], None] = lambda rank: None) -> int:
    """As `unimm train` does it: status.json, the exit code, one line on stderr for what a person can put right."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with told(Status(folder, ranks.rank(), ranks.world()), ended) as status:
            ranks.barrier()
            train(base, folder, kind, trouble, status)
    except BaseException as error:
        code = ended(error)[1]
        print(error, file=sys.stderr) if code != 1 else traceback.print_exc()
        return code
    return 0


def forked_rank(base: Path, folder: Path, kind: Kind, trouble, rank: int, store: Path) -> None:
    """Be rank `rank` in a forked process; does not return."""
    code = 1
    try:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(kind.world), LOCAL_RANK=str(rank))
        if kind.world > 1:  # a store in a file: a hundred runs need no port of their own
            dist.init_process_group("gloo", store=dist.FileStore(str(store), kind.world), rank=rank,
                                    world_size=kind.world)
        code = run_rank(base, folder, kind, trouble)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def waits_for_signal(hooks: Rank, batch: int, number: int) -> None:
    """Before that batch, say so by a file, and go on once the stage's own handler has noted the signal."""
    def at(n: int) -> None:
        if n == batch and ranks.rank() == 0:
            (hooks.folder.parent / "waits").touch()
            while not signal.getsignal(number).__self__.received:
                time.sleep(0.01)

    hooks.before_batch = at


if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks.start()
    base, folder, kind, batch, number = sys.argv[1:]
    ranks.leave(run_rank(Path(base), Path(folder), KINDS[kind],
                         lambda hooks: waits_for_signal(hooks, int(batch), signal.Signals[number])))
