"""The table before step 1: part by part what trains, how, how fast, and what one rank holds of it.

    part                         parameters  trained  how                  lr     weights MiB  gradients  optimizer
    backbone.model.embed_tokens      99,456   66,176  517 new rows of 777  0.001         0.19       0.05       0.28
"""

from collections import defaultdict
from dataclasses import dataclass

from torch import nn

from unimm.config.stages import NextToken, Reconstruct
from unimm.model.lora import is_adapter
from unimm.train.footprint import PERSIST, Footprint, footprint
from unimm.train.optimizer import build_optimizer
from unimm.train.shares import Shares, shares
from unimm.train.trains import Trained
from unimm.words import columns


@dataclass(frozen=True)
class Row:
    """One part. `trained` counts the elements that may move; the last three are bytes on one rank."""

    part: str
    parameters: int
    trained: int
    how: str
    lr: str
    weights: float
    gradients: float
    optimizer: float


def rows(module: nn.Module, stage: NextToken | Reconstruct, trained: Trained, world: int) -> list[Row]:
    """The table's rows, in the module's order."""
    groups = build_optimizer(module, stage.optimizer, trained.rates, trained.rows).param_groups
    group_of = {p: group for group in groups for p in group["params"]}
    parts: dict[str, dict[str, nn.Parameter]] = defaultdict(dict)
    for name, p in module.named_parameters():
        parts[_part_of(name)][name] = p
    tied, cut = _tied(module), shares(stage, world)
    found = []
    for part, members in parts.items():
        sizes = [_footprint(p, stage, cut, p in group_of and group_of[p].get("muon", False)) for p in members.values()]
        lrs = sorted({group_of[p]["initial_lr"] for p in members.values() if p in group_of}, reverse=True)
        moved = sum(_moved(name, p, trained) for name, p in members.items())
        how = _how(members, trained) + "".join(f", tied to {tied[name]}" for name in members if name in tied)
        found.append(Row(part, sum(p.numel() for p in members.values()), moved, how,
                         " / ".join(f"{lr:g}" for lr in lrs), *(sum(s) for s in zip(*sizes))))
    return found


def _footprint(p: nn.Parameter, stage: NextToken | Reconstruct, cut: Shares, muon: bool) -> Footprint:
    size, moved = p.numel(), p.numel() * p.requires_grad
    return footprint(size, moved, size if size < PERSIST else 0, moved * (1 if muon else 2), zero=stage.zero,
                     bf16=stage.precision == "bf16", world=cut.ranks, accumulated=cut.accumulated,
                     offload=stage.offload)


def lines(module: nn.Module, stage: NextToken | Reconstruct, trained: Trained, world: int) -> list[str]:
    """The table as text, with its totals."""
    found = rows(module, stage, trained, world)
    sums = [sum(values) for values in zip(*((r.parameters, r.trained, r.weights, r.gradients, r.optimizer)
                                            for r in found))]
    share = f"{100 * sums[1] / sums[0]:.3g} %"
    found.append(Row("total", sums[0], sums[1], f"{share} of all", "", *sums[2:]))
    unit, scale = ("GiB", 2**30) if sum(sums[2:]) >= 2**30 else ("MiB", 2**20)
    cells = [("part", "parameters", "trained", "how", "lr", f"weights {unit}", "gradients", "optimizer")]
    for r in found:
        memory = [f"{value / scale:,.2f}" for value in (r.weights, r.gradients, r.optimizer)]
        cells.append((r.part, f"{r.parameters:,}", f"{r.trained:,}" if r.trained else "-", r.how, r.lr, *memory))
    who = f"each of {world} ranks" if world > 1 else "one process"
    where = ", gradients and optimizer in host memory" if stage.offload else ""
    held = f"{who} holds {sum(sums[2:]) / scale:,.2f} {unit} of these at zero {stage.zero} in {stage.precision}{where}"
    return [*columns(cells, left=(0, 3, 4)), f"{held}, and activations"]


def _how(members: dict[str, nn.Parameter], trained: Trained) -> str:
    adapters = [p for name, p in members.items() if ".lora_A." in name]  # (rank, inputs)
    plain = {name: p for name, p in members.items() if not is_adapter(name)}
    whole = [name for name, p in plain.items() if p.requires_grad and name not in trained.rows]
    how = []
    if adapters:
        how.append(f"LoRA rank {len(adapters[0])} on {len(adapters)} layers")
    how += [f"{len(some):,} new rows of {len(plain[name]):,}" for name, some in trained.rows.items() if name in plain]
    if whole:
        owners = dict.fromkeys(name.rpartition(".")[0].rpartition(".")[2] for name in whole)
        named = len(owners) <= 2 and not any(owner.isdigit() for owner in owners)
        some = ", ".join(owners) if named else f"{len(whole)} of {len(plain)} tensors"
        some = "norms" if all("norm" in owner for owner in owners) else some
        how.append("full" if len(whole) == len(plain) else some)
        how[-1] += "".join(f", {'all' if len(new) == len(plain[name]) else f'{len(new):,}'} rows new"
                           for name, new in trained.new_rows.items() if name in whole)
    return " + ".join(how) or "frozen"


def _moved(name: str, p: nn.Parameter, trained: Trained) -> int:
    """How many elements of a parameter may move."""
    if name in trained.rows:
        return p.numel() // len(p) * len(trained.rows[name])
    return p.numel() if p.requires_grad else 0


def _tied(module: nn.Module) -> dict[str, str]:
    """First name of a shared parameter -> the layer of its second."""
    first: dict[nn.Parameter, str] = {}
    found = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        if first.setdefault(p, name) != name:
            found[first[p]] = name.rpartition(".")[0]
    return found


def _part_of(name: str) -> str:
    """The block list a parameter is in ("model.layers" of "model.layers.0.mlp.weight"), else its module."""
    path = name.split(".")
    numbered = [i for i, piece in enumerate(path) if piece.isdigit()]
    return ".".join(path[: numbered[0]] if numbered else path[:-1]) or name
