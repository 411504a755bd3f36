"""From a stage's optimizer config and a module to one torch optimizer."""

from typing import assert_never

import torch
from torch import nn

from unimm.config import stages
from unimm.train.muon import MuonAdamW
from unimm.train.trains import EVERYTHING, Trained


def block_matrices(module: nn.Module) -> set[nn.Parameter]:
    """Weights of the linear layers inside blocks, a block being a member of a ModuleList."""
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
    linear = [m for blocks in lists for m in blocks.modules() if isinstance(m, nn.Linear)]
    return {m.weight for m in linear if m.weight.requires_grad}


def build_optimizer(module: nn.Module, config: stages.AdamW | stages.Muon,
                    trained: Trained = EVERYTHING) -> torch.optim.AdamW:
    """An optimizer over what trains in `module`; vectors (norms, biases) and tables of which some rows train never
    decay. Every group has `initial_lr`, the highest rate of its schedule.
    """
    match config:
        case stages.Muon():
            matrices, lr, kind = block_matrices(module), config.adamw_lr, MuonAdamW
        case stages.AdamW():
            matrices, lr, kind = set(), config.lr, torch.optim.AdamW
        case _:
            assert_never(config)
    groups: dict[tuple, dict] = {}
    for name, p in module.named_parameters():
        if p.requires_grad:
            factor, vector = trained.rates.get(name, 1.0), p.ndim < 2
            decay = 0.0 if vector or name in trained.rows else config.weight_decay
            group = {"muon": p in matrices, "lr": factor * lr, "weight_decay": decay}
            if p in matrices:
                group |= {"lr": factor * config.lr, "momentum": config.momentum}
            groups.setdefault((p not in matrices, vector, factor, decay), group | {"params": []})["params"].append(p)
    # In an order that does not hang on which parameter comes first: the flat pieces of ZeRO follow it.
    ordered = [groups[key] | {"initial_lr": groups[key]["lr"]} for key in sorted(groups)]
    return kind(ordered, betas=config.betas, fused=True)
