"""What moves in a toy under each `Trains`, on any number of ranks."""

from pathlib import Path

import torch
from train_toys import Stream, ToyLM, stage

from unimm.checkpoint.read import load_weights
from unimm.config.stages import AdamW, Muon
from unimm.config.trains import Lora, Trains
from unimm.model.lora import adapt
from unimm.train.loop import Work, run_stage

NEW = {"embed.weight": range(6, 10), "head.weight": range(6, 10)}  # 10 and 11 fill the table up, as published ones do
PARTS = {"embeddings": ["embed.weight"], "head": ["head.weight"]}
DECAYING = AdamW(lr=0.01, weight_decay=0.5)

ROWS = list(range(6, 10))
ALL, BLOCK = list(range(12)), list(range(8))
FROZEN_BLOCKS = {"blocks.0.weight": [], "blocks.1.weight": []}
NEW_MOVED = {"embed.weight": ROWS, **FROZEN_BLOCKS, "head.weight": ROWS}
ADAPTED = {f"blocks.{i}.{name}": rows for i in (0, 1) for name, rows in
           (("base_layer.weight", []), ("lora_A.default.weight", [0, 1]), ("lora_B.default.weight", BLOCK))}


class Toy(ToyLM):
    """A bigram model whose weights survive a trip through bf16, so that engines in it leave frozen ones alone."""

    def __init__(self, tied: bool = False):
        super().__init__()
        if tied:
            self.head.weight = self.embed.weight
        for p in self.parameters():
            p.data = p.data.bfloat16().float()


def moved_by(folder: Path, tied: bool = False, engine: str = "deepspeed", steps: int = 3, **changes) -> dict:
    """Train the toy; the rows of each parameter that differ from the start in any bit, by its plain name."""
    before = Toy(tied)
    work = Work(Toy(tied), Stream("lm"), new_rows=NEW, parts=PARTS)
    path = run_stage(work, stage(**{"steps": steps, "optimizer": DECAYING} | changes), folder, engine=engine)
    after = Toy(tied)
    if lora := changes["train"].lora:
        adapt(after, lora)
    load_weights(path, after)
    old = dict(before.named_parameters())
    return {name: changed(old[name.replace(".base_layer", "")] if "lora" not in name else torch.zeros_like(p), p)
            for name, p in after.named_parameters()}


def changed(before: torch.Tensor, after: torch.Tensor) -> list[int]:
    bits = before.detach().view(torch.int32) != after.detach().view(torch.int32)
    return bits.flatten(1).any(1).nonzero().flatten().tolist()


NEW_ROWS = Trains(parts=("new_rows",))
LORA = Trains(parts=("new_rows",), lora=Lora(rank=2, alpha=8.0, dropout=0.2))
TWO_RANKS = {
    **{f"new rows, zero {zero}": {"train": NEW_ROWS, "zero": zero} for zero in (0, 1, 2, 3)},
    **{f"tied, zero {zero}": {"train": NEW_ROWS, "zero": zero, "tied": True} for zero in (1, 3)},
    **{f"lora, zero {zero}": {"train": LORA, "zero": zero} for zero in (0, 2, 3)},
    "blocks frozen, zero 2": {"train": Trains(parts=("all", "new_rows"), frozen=("embeddings", "blocks")), "zero": 2},
    "new rows, bf16, zero 1": {"train": NEW_ROWS, "zero": 1, "precision": "bf16"},
    "new rows, accumulated": {"train": NEW_ROWS, "zero": 2, "precision": "bf16", "micro": 2, "ema": 0.9},
    "new rows, offloaded": {"train": NEW_ROWS, "zero": 2, "offload": True},
    "lora, muon": {"train": LORA, "zero": 2, "optimizer": Muon(weight_decay=0.5)},
}
