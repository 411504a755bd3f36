"""The table before step 1: part by part what trains, how, how fast, and what one rank holds of it.

    part                         parameters  trained  how                  lr     weights MiB  gradients  optimizer
    backbone.model.embed_tokens      99,456   66,176  517 new rows of 777  0.001         0.19       0.05       0.28

At stage 0 weights and gradients are fp32. From stage 1 on they have the stage's precision, and the optimizer, with
fp32 masters of what it moves, is shared out, and with it the gradients that wait for the update: at stage 1 DeepSpeed
0.19 drops the others as soon as a bucket is reduced. At stage 3 weights are shared out too (Rajbhandari et al. 2020,
arXiv:1910.02054, section 5). Measured in tests/plan/test_memory.py and by tools/bench/zero.py.
"""

import re
from collections import defaultdict
from typing import NamedTuple

from torch import nn

from unimm.config.stages import NextToken, PictureStage, Stage
from unimm.model.lora import is_adapter
from unimm.train.optimizer import build_optimizer
from unimm.train.shares import Shares, shares
from unimm.train.trains import Trained, first_names
from unimm.words import columns

PERSIST = 100_000
"""DeepSpeed's stage3_param_persistence_threshold: parameters of fewer elements stay whole on every rank."""


class Footprint(NamedTuple):
    """Bytes on one rank, be it on its device or, where the optimizer is offloaded, the last two in host memory."""

    weights: float
    gradients: float
    optimizer: float


def footprint(size: int, moved: int, small: int, moments: int, stage: Stage, cut: Shares) -> Footprint:
    """What a rank holds between backward and update, but for activations and the buffers of collectives.

    size     elements of all tensors
    moved    elements of the tensors that have a gradient
    small    elements of the tensors of fewer than PERSIST
    moments  fp32 values that the optimizer keeps: 2 for each of `moved` in AdamW, 1 in Muon

    Gradients of several forwards of a rank in a step are added up in fp32, and in bf16 at stage 1 as at stage 2 (see
    `unimm.train.engine`); in fp32 at stage 1 every rank adds up all of them.
    """
    if stage.zero == 0:
        return Footprint(4 * size, 4 * moved, 4 * moments)
    each = 2 if stage.precision == "bf16" else 4
    # On one rank a small tensor's share is the tensor.
    whole = size / cut.ranks + (small if cut.ranks > 1 else 0) if stage.zero == 3 else size
    holders = 1 if stage.zero == 1 and each == 4 and cut.accumulated > 1 else cut.ranks
    summed = 4 if cut.accumulated > 1 or stage.offload else each
    return Footprint(each * whole, summed * moved / holders, 4 * (moments + moved) / cut.ranks)


class Row(NamedTuple):
    """One part. `trained` counts the elements that may move; `held` are bytes on one rank."""

    part: str
    parameters: int
    trained: int
    how: str
    lr: str
    held: Footprint


def rows(module: nn.Module, stage: NextToken | PictureStage, trained: Trained, world: int) -> list[Row]:
    """The table's rows, in the module's order."""
    groups = {p: g for g in build_optimizer(module, stage.optimizer, trained).param_groups for p in g["params"]}
    tied = {first: name.rpartition(".")[0] for name, first in first_names(module).items() if name != first}
    parts: dict[str, dict[str, nn.Parameter]] = defaultdict(dict)
    for name, p in module.named_parameters():
        # The block list it is in ("model.layers" of "model.layers.0.mlp.weight"), else its module.
        parts[re.sub(r"\.(\d+\..*|[^.]+)$", "", name, count=1)][name] = p
    found, cut = [], shares(stage, world)
    for part, members in parts.items():
        how = _how(members, trained) + "".join(f", tied to {tied[name]}" for name in members if name in tied)
        sizes, moves = [p.numel() for p in members.values()], [p for p in members.values() if p in groups]
        size, moved, small = sum(sizes), sum(p.numel() for p in moves), sum(n for n in sizes if n < PERSIST)
        moments = sum(p.numel() * (1 if groups[p]["muon"] else 2) for p in moves)
        old = sum(members[n][0].numel() * (len(members[n]) - len(r)) for n, r in trained.rows.items() if n in members)
        rates = sorted({groups[p]["initial_lr"] for p in moves}, reverse=True)
        found.append(Row(part, size, moved - old, how, " / ".join(f"{rate:g}" for rate in rates),
                         footprint(size, moved, small, moments, stage, cut)))
    return found


def lines(found: list[Row], stage: Stage, world: int) -> list[str]:
    """The table as text, with its totals."""
    whole, moved = sum(r.parameters for r in found), sum(r.trained for r in found)
    held = Footprint(*(sum(each) for each in zip(*(r.held for r in found))))
    found = [*found, Row("total", whole, moved, f"{100 * moved / whole:.3g} % of all", "", held)]
    unit, scale = ("GiB", 2**30) if sum(held) >= 2**30 else ("MiB", 2**20)
    cells = [("part", "parameters", "trained", "how", "lr", f"weights {unit}", "gradients", "optimizer")]
    cells += [(r.part, f"{r.parameters:,}", f"{r.trained:,}" if r.trained else "-", r.how, r.lr,
               *(f"{each / scale:,.2f}" for each in r.held)) for r in found]
    who = f"each of {world} ranks" if world > 1 else "one process"
    where = ", gradients and optimizer in host memory" if stage.offload else ""
    return [*columns(cells, left=(0, 3, 4)), f"{who} holds {sum(held) / scale:,.2f} {unit} of these at zero "
            f"{stage.zero} in {stage.precision}{where}, and activations"]


def _how(members: dict[str, nn.Parameter], trained: Trained) -> str:
    adapters = [p for name, p in members.items() if ".lora_A." in name]  # (rank, inputs)
    plain = {name: p for name, p in members.items() if not is_adapter(name)}
    whole = [name for name, p in plain.items() if p.requires_grad and name not in trained.rows]
    how = [f"LoRA rank {len(adapters[0])} on {len(adapters)} layers"] if adapters else []
    how += [f"{len(some):,} new rows of {len(plain[name]):,}" for name, some in trained.rows.items() if name in plain]
    if whole:
        new = "".join(f", {len(some):,} rows new" for name, some in trained.new_rows.items() if name in whole)
        how.append(("full" if len(whole) == len(plain) else f"{len(whole)} of {len(plain)} tensors") + new)
    return " + ".join(how) or "frozen"
