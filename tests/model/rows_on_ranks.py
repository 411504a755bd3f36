"""Imported models under ZeRO-3, on every rank of a launch: the test starts it and reads what it found.

    python rows_on_ranks.py FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from model.released import KINDS, NoTokenizer, layout_of, recipe_of
from model.test_imported_training import batch_of

from unimm.config.data import Use
from unimm.config.model import SharedSoftmax, SharedTable
from unimm.config.stages import AdamW, NextToken, Schedule
from unimm.config.tokens import Codebook
from unimm.layout import Layout
from unimm.sample import Text, sample
from unimm.stream.batches import make_batch
from unimm.system import new_model
from unimm.text import BytesTokenizer
from unimm.train import ranks
from unimm.train.engine import build_engine

assert "llama" in KINDS


def system(kind: str, folder: Path):
    """Of a Llama with 128 codes behind its table, or a Janus as it was released."""
    if kind == "janus":
        return recipe_of(kind, folder), layout_of(kind)
    book = (Codebook(name="visual", size=128),)
    recipe = recipe_of(kind, folder, codebooks=book, image_in=SharedTable(), image_out=SharedSoftmax())
    layout = Layout(recipe.layout, BytesTokenizer(), book)
    return recipe, layout


def stepped(kind: str, folder: Path, world: int, rank: int, engine: str, zero: int):
    """Weights at the start, weights in the engine before and after a step, and the largest share a rank holds."""
    recipe, layout = system(kind, folder)
    torch.manual_seed(0)
    model = new_model(recipe, layout, NoTokenizer())
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    stage = NextToken(mix=(Use(data="x"),), steps=3, zero=zero, schedule=Schedule(warmup=0.0, anneal=0.0),
                      optimizer=AdamW(lr=0.01), step_tokens=256, seq_len=128)
    made = build_engine(model, stage, engine)
    shares = {name: p.ds_tensor.numel() / p.ds_numel for name, p in model.named_parameters() if hasattr(p, "ds_tensor")}
    before = {name: t.clone() for name, t in made.masters.weights().items()}
    pictures, _ = batch_of(layout, layout.config.sizes[0])
    words = layout.render(sample(Text("words alone", learn=True)))
    words = make_batch([[words]], pictures.ids.shape[1], layout.pad_id, layout.vocab.is_code)
    whole = model.weigh(pictures)[0] + model.weigh(words)[0]
    own = [pictures, words][rank:] if world == 1 else [[pictures, words][rank]]  # one rank shows and draws nothing
    for n, batch in enumerate(own):
        made.backward(made(batch, n == len(own) - 1).total / whole)
    made.step()
    after = made.masters.weights()
    made.close()
    return start, before, after, shares


def found(folder: Path) -> dict[str, float]:
    everything = {}
    for kind in ("llama", "janus"):
        start, before, after, shares = stepped(kind, folder / kind, ranks.world(), ranks.rank(), "deepspeed", 3)
        everything |= {f"{kind} start": sum(float(t.double().sum()) for t in start.values()),
                       f"{kind} largest share": max(shares.values()), f"{kind} sharded": len(shares) / len(start)}
        if ranks.rank() == 0:
            torch.save((start, before, after), folder / f"{kind}.pt")
    return everything


if __name__ == "__main__":
    ranks.start()
    torch.set_num_threads(1)
    every = ranks.gather([found(Path(sys.argv[1]))])
    if ranks.rank() == 0:
        (Path(sys.argv[1]) / "found.json").write_text(json.dumps([each for one in every for each in one]))
    ranks.leave()
