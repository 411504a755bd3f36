"""Many trainings in turn, in one process or one per rank: the tests start it and read what it found.

    python engine_runs.py FOLDER

FOLDER/runs.json is a list of {"name", "module", "stage": changes, ...}, in FOLDER/found.json are their losses. A run
whose folder holds a checkpoint continues it.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from train_toys import Regression, Stream, Tokens, ToyLM, curve, rolls, skips, stage
from trains_toys import TWO_RANKS, moved_by

from unimm.checkpoint.read import KEY, Pieces, load_weights, read_state
from unimm.config.model import FreshBackbone, SharedTable
from unimm.config.stages import AdamW, Muon, Schedule
from unimm.config.tokens import Codebook, ImageLayout, LevelLayout
from unimm.config.tokens import Layout as LayoutConfig
from unimm.config.trains import Trains
from unimm.layout import Layout
from unimm.losses import Losses
from unimm.model.backbone import build_backbone, recompute_layers
from unimm.model.image_input import ImageInput, Places
from unimm.model.unified import UnifiedModel
from unimm.sample import Batch
from unimm.text import BytesTokenizer
from unimm.train import ranks
from unimm.train.engine import NotFinite, build_engine
from unimm.train.loop import Work, run_stage

OPTIMIZERS = {"adamw": AdamW(lr=0.01, clip=0.5, weight_decay=0.1), "muon": Muon(clip=0.5, weight_decay=0.1)}


class Ragged(Stream):
    """Rows of which the second half teaches nothing at odd steps: all that the second of two ranks has then."""

    def __init__(self):
        super().__init__("lm")

    def next(self):
        batch = super().next()
        first = len(batch) * ranks.rank()
        taught = (np.arange(first, first + len(batch)) < 4) | (self.i % 2 == 0)
        return replace(batch, learn=batch.learn & taught[:, None])


class Images:
    """Packed rows of two documents for the real model; at odd steps the second half has no image."""

    def __init__(self, layout: Layout):
        self.layout, self.i = layout, 0

    def next(self):
        rng, shape = np.random.default_rng(self.i), (8, 12)
        code = np.zeros(shape, bool)
        code[:4 if self.i % 2 else 8, 3:6] = True
        book = self.layout.vocab.ranges["visual"]
        ids = np.where(code, rng.integers(book.start, book.stop, shape), rng.integers(0, 250, shape))
        self.i += 1
        document = np.broadcast_to(np.arange(12) // 6 + 1, shape).copy()
        position = np.broadcast_to(np.arange(12) % 6, shape).copy()
        learn = (rng.random(shape) < 0.5) & (position < 5)
        batch = Batch(ids, np.roll(ids, -1, 1), learn, position, document, np.roll(code, -1, 1))
        own = 8 // ranks.world()
        return batch[ranks.rank() * own:(ranks.rank() + 1) * own]

    def state(self):
        return {"i": self.i}

    def restore(self, state):
        self.i = state["i"]


def unified(recompute: bool, zero: int) -> tuple[nn.Module, Images]:
    write = ImageLayout(begin="<boi>", levels=(LevelLayout(space="visual"),), end="<eoi>")
    layout = Layout(LayoutConfig(write=write, sizes=((2, 2),)), BytesTokenizer(), (Codebook(name="visual", size=8),))
    torch.manual_seed(0)
    shape = FreshBackbone(width=16, layers=2, heads=2, kv_heads=2, mlp=32)
    backbone = build_backbone(shape, layout.vocab, SharedTable(rows="normal"), {})
    if recompute:
        recompute_layers(backbone, reentrant=zero == 3)
    images = ImageInput(Places(4, layout.vocab.is_code, [layout.vocab.special["<boi>"]], 16))
    model = UnifiedModel(backbone, layout.vocab, images)
    model.image_weight = 0.5
    return model, Images(layout)


class Tied(ToyLM):
    """With one table in and out, a block to freeze, and a buffer of its own."""

    def __init__(self):
        super().__init__()
        self.head.weight = self.embed.weight
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, batch) -> Losses:
        self.seen += 1
        return super().forward(batch)


def build(changes: dict):
    usual = {"steps": 20, "schedule": Schedule(warmup=0.1, anneal=0.5), "preview_every": 100, "save_every": 10}
    optimizer = OPTIMIZERS[changes.pop("optimizer", "adamw")]
    return stage(**(usual | {"optimizer": optimizer} | changes))


def parts(module: str, changes: dict):
    match module:
        case "lm":
            return ToyLM(), Stream("lm")
        case "dropout":
            return Regression(0.3), Stream("regression")
        case "ragged":
            return ToyLM(), Ragged()
        case "tied":
            return Tied(), Stream("lm")
        case "unified":
            return unified(changes.pop("recomputed", False), changes.get("zero", 0))


def run(folder: Path, name: str, module: str, stage: dict, engine: str = "deepspeed", rates: dict | None = None):
    """The loss of every step so far."""
    changes = dict(stage)
    net, stream = parts(module, changes)
    train = Trains(rates=rates or {}, frozen=("blocks.0",) if module == "tied" else ())
    run_stage(Work(net, stream), build(changes | {"train": train}), folder / name, engine=engine)
    return curve(folder / name)


def previewed(folder: Path, name: str, module: str, stage: dict, **_) -> list[float]:
    """What a preview sees of the weights at the last step, and what the stage then leaves, as sums."""
    seen = []
    changes = dict(stage)
    net, stream = parts(module, changes)
    batch = Tokens(np.ones((1, 5), int), np.ones((1, 5), int), np.ones((1, 5), bool))
    path = run_stage(Work(net, stream, lambda step: seen.append(float(net(batch).total))),
                     build(changes | {"train": Trains(frozen=("blocks.0",))}), folder / name, engine="deepspeed")
    net, _ = parts(module, dict(stage))
    load_weights(path, net)
    return [*seen, net(batch).total.item()]


def skipping(folder: Path, stage: dict, **_) -> list[float]:
    """How far a run with a bad batch in between is from one without, and how far that batch moved it."""
    ends = []
    for bad in (False, True):
        net, stream = ToyLM(), Stream("lm")
        engine = build_engine(net, build(dict(stage)), "deepspeed")
        for step in range(3):
            batch = stream.next()
            for poison in ([float("nan"), 1.0] if bad and step == 1 else [1.0]):
                before = engine.masters.weights()
                engine.backward(engine(batch[:2], last=False).total / 40)
                engine.backward(engine(batch[2:], last=True).total * poison / 40)
                try:
                    engine.step()
                except NotFinite:
                    assert poison != 1.0 and all(torch.equal(before[k], v) for k, v in engine.masters.weights().items())
                else:
                    assert poison == 1.0
        ends.append(engine.masters.weights())
        engine.close()
    return [max((float((ends[0][k] - ends[1][k]).abs().max()) for k in ends[0]), default=0.0)]


def returning(folder: Path, stage: dict, **_) -> list[float]:
    """How far the third step is from itself after going back to the second, in one engine."""
    net, stream, ends, kept = ToyLM(), Stream("lm"), [], None
    engine = build_engine(net, build(dict(stage)), "deepspeed")
    for stream.i in (0, 1, 2, 1, 2):
        if len(ends) == 3:
            engine.restore(*kept)
        engine.backward(engine(stream.next(), last=True).total / 40)
        engine.step()
        ends.append(engine.masters.weights())
        if len(ends) == 1:
            kept = in_memory(engine.masters.pieces()), engine.masters.updates
    return [max((float((ends[2][k] - ends[4][k]).abs().max()) for k in ends[2]), default=0.0)]


def in_memory(pieces: dict[str, torch.Tensor]):
    """A reader of what all ranks hold now."""
    copies = [(KEY.fullmatch(key).groups(), t.clone()) for key, t in pieces.items()]
    everything = sorted((p for own in ranks.gather(copies) for p in own), key=lambda p: int(p[0][1]))

    def read(name: str, start: int, stop: int) -> dict[str, torch.Tensor]:
        parts = [(kind, t) for (owner, _, _, kind), t in everything if owner == name]
        return {kind: torch.cat([t for other, t in parts if other == kind])[start:stop] for kind in dict(parts)}

    return read


def restored(folder: Path, stage: dict, start: str, **_) -> list[float]:
    """The loss of one forward right after a restore into another fresh module, over all ranks."""
    net = ToyLM()
    torch.nn.init.zeros_(net.embed.weight)
    engine = build_engine(net, build(dict(stage)), "deepspeed")
    path = folder / start
    engine.restore(Pieces(path), read_state(path)["updates"])
    with torch.no_grad():
        return ranks.total([float(engine(Stream("lm").next()).total)])


def moved(folder: Path, name: str) -> dict[str, list[int]]:
    """The rows of each parameter that move."""
    return moved_by(folder / name, **TWO_RANKS[name])


KINDS = {"run": run, "previewed": previewed, "skipping": skipping, "returning": returning, "restored": restored,
         "moved": moved, "skip": skips, "roll": rolls}

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    found = {}
    for each in json.loads((folder / "runs.json").read_text()):
        found[each["name"]] = KINDS[each.pop("kind", "run")](folder, **each)
    if ranks.rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))
    ranks.leave()
