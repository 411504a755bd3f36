"""The table before step 1: part by part what trains, how, how fast, and what one rank holds of it.

    part                         parameters  trained  how                  lr     weights MiB  gradients  optimizer
    backbone.model.embed_tokens      99,456   66,176  517 new rows of 777  0.001         0.19       0.05       0.28
"""

import re
from collections import defaultdict
from dataclasses import dataclass

from torch import nn

from unimm.config.stages import NextToken, PictureStage
from unimm.model.lora import is_adapter
from unimm.train.footprint import PERSIST, Footprint, footprint
from unimm.train.optimizer import build_optimizer
from unimm.train.shares import shares
from unimm.train.trains import Trained, first_names
from unimm.words import columns


@dataclass(frozen=True)
class Row:
    """One part. `trained` counts the elements that may move; `held` are bytes on one rank."""

    part: str
    parameters: int
    trained: int
    how: str
    lr: str
    held: Footprint


def rows(module: nn.Module, stage: NextToken | PictureStage, trained: Trained, world: int) -> list[Row]:
    """The table's rows, in the module's order."""
    optimizer = build_optimizer(module, stage.optimizer, trained)
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    tied = {first: name.rpartition(".")[0] for name, first in first_names(module).items() if name != first}
    parts: dict[str, dict[str, nn.Parameter]] = defaultdict(dict)
    for name, p in module.named_parameters():
        parts[_part_of(name)][name] = p
    found = []
    for part, members in parts.items():
        how = _how(members, trained) + "".join(f", tied to {tied[name]}" for name in members if name in tied)
        rates = sorted({groups[p]["initial_lr"] for p in members.values() if p in groups}, reverse=True)
        found.append(Row(part, sum(p.numel() for p in members.values()),
                         sum(_moved(name, p, trained) for name, p in members.items()), how,
                         " / ".join(f"{rate:g}" for rate in rates), _held(members, groups, stage, world)))
    return found


def _held(members: dict[str, nn.Parameter], groups: dict[nn.Parameter, dict], stage: NextToken | PictureStage,
          world: int) -> Footprint:
    sizes = {p: p.numel() for p in members.values()}
    moved = sum(size for p, size in sizes.items() if p in groups)
    matrices = sum(size for p, size in sizes.items() if p in groups and groups[p]["muon"])
    return footprint(sum(sizes.values()), moved, sum(size for size in sizes.values() if size < PERSIST),
                     2 * moved - matrices, zero=stage.zero, bf16=stage.precision == "bf16", world=world,
                     accumulated=shares(stage, world).accumulated, offload=stage.offload)


def lines(module: nn.Module, stage: NextToken | PictureStage, trained: Trained, world: int) -> list[str]:
    """The table as text, with its totals."""
    found = rows(module, stage, trained, world)
    whole, moved = sum(r.parameters for r in found), sum(r.trained for r in found)
    held = Footprint(*(sum(each) for each in zip(*(r.held for r in found))))
    found.append(Row("total", whole, moved, f"{100 * moved / whole:.3g} % of all", "", held))
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


def _moved(name: str, p: nn.Parameter, trained: Trained) -> int:
    """How many elements of a parameter may move."""
    if name in trained.rows:
        return p.numel() // len(p) * len(trained.rows[name])
    return p.numel() if p.requires_grad else 0


def _part_of(name: str) -> str:
    """The block list a parameter is in ("model.layers" of "model.layers.0.mlp.weight"), else its module."""
    found = re.match(r"(.+?)\.(\d+\.|[^.]+$)", name)
    return found[1] if found else name
