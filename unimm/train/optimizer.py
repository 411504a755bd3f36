"""From a stage's optimizer config and a module to one torch optimizer.

Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) moves a matrix by the orthogonalised
momentum of its gradient. `torch.optim.Muon` is the same update one matrix at a time; here matrices of
one shape share a batched iteration (1.8x at width 128, 1.3x at 192 on one CPU thread), and everything
that is no matrix of a block is moved by AdamW in the same optimizer.
"""

from typing import assert_never

import torch
from torch import Tensor, nn

from unimm.config import stages

# Quintic coefficients with the steepest slope at zero (same source); torch.optim.Muon has the same.
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonalise(g: Tensor, rounds: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Newton-Schulz towards the nearest semi-orthogonal matrices: (n, rows, columns) -> same shape, `dtype`."""
    x = g.to(dtype)
    tall = x.size(1) > x.size(2)
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x.mT if tall else x


class MuonAdamW(torch.optim.AdamW):
    """AdamW, with groups marked `muon=True` moved by Muon instead."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            if group["muon"]:
                self._muon(group)
        return super().step(closure)  # skips the matrices: they have no gradient any more

    def _muon(self, group: dict) -> None:
        alike: dict[tuple, list[Tensor]] = {}
        for p in group["params"]:
            if p.grad is not None:
                alike.setdefault(tuple(p.shape), []).append(p)
        for shape, params in alike.items():
            gradients = [p.grad for p in params]
            momenta = [self._momentum(p) for p in params]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov
            updates = orthogonalise(torch.stack(ahead)).to(params[0].dtype).unbind()
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, updates, alpha=-group["lr"] * max(1, shape[0] / shape[1]) ** 0.5)
            for p in params:
                p.grad = None

    def _momentum(self, p: Tensor) -> Tensor:
        if not self.state[p]:
            self.state[p] |= {"momentum": torch.zeros_like(p), "step": torch.tensor(0.0)}  # AdamW's loader wants a step
        return self.state[p]["momentum"]


def block_matrices(module: nn.Module) -> set[nn.Parameter]:
    """Weights of the linear layers inside blocks, a block being a member of a ModuleList."""
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
    linear = [m for blocks in lists for m in blocks.modules() if isinstance(m, nn.Linear)]
    return {m.weight for m in linear if m.weight.requires_grad}


def build_optimizer(module: nn.Module, config: stages.AdamW | stages.Muon) -> torch.optim.AdamW:
    """An optimizer over what trains in `module`; vectors (norms, biases) never decay.

    Every group has `initial_lr`, the highest rate of its schedule.
    """
    rest = {p: None for p in module.parameters() if p.requires_grad}
    groups = []
    match config:
        case stages.Muon():
            matrices = block_matrices(module)
            groups.append({"params": [p for p in rest if p in matrices], "muon": True, "lr": config.lr,
                           "momentum": config.momentum, "weight_decay": config.weight_decay})
            rest = {p: None for p in rest if p not in matrices}
            lr, kind = config.adamw_lr, MuonAdamW
        case stages.AdamW():
            lr, kind = config.lr, torch.optim.AdamW
        case _:
            assert_never(config)
    for vectors in (False, True):
        groups.append({"params": [p for p in rest if (p.ndim < 2) == vectors], "muon": False, "lr": lr,
                       "weight_decay": 0.0 if vectors else config.weight_decay})
    groups = [group | {"initial_lr": group["lr"]} for group in groups if group["params"]]
    return kind(groups, betas=config.betas, fused=True)
