"""From a stage's optimizer config and a module to one torch optimizer and its learning rate; Muon, which torch has one
matrix at a time.

Muon: matrices moved by the orthogonalised momentum of their gradient (Jordan 2024).

https://kellerjordan.github.io/posts/muon/ . `torch.optim.Muon` is the same update one matrix at a time; here
matrices of one shape share a batched iteration (1.8x at width 128, 1.3x at 192 on one CPU thread), and everything
that is no matrix of a block is moved by AdamW in the same optimizer.

ZeRO hands the optimizer flat pieces of matrices. Momentum is element-wise, so each rank keeps its own piece's; each
matrix is then brought together on one rank, orthogonalised there, and sent back in pieces, so that the work is shared
and whatever ZeRO cuts gives the curve of one process. (DeepSpeed's own Muon clips what it has orthogonalised, which
is another curve.)
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unimm.config import stages
from unimm.train import ranks
from unimm.train.pieces import Held
from unimm.train.trains import EVERYTHING, Trained

# Quintic coefficients with the steepest slope at zero (same source); torch.optim.Muon has the same.
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonalise(matrices: Sequence[Tensor], dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """Newton-Schulz towards the nearest semi-orthogonal matrix of each: (rows, columns) -> same shape, `dtype`.

    Those of one shape share an iteration. On a CPU its products are float32: many have none of bf16 and take three
    times as long then.
    """
    updates: dict[int, Tensor] = {}
    for shape in dict.fromkeys(m.shape for m in matrices):
        alike = [i for i, m in enumerate(matrices) if m.shape == shape]
        x = torch.stack([matrices[i] for i in alike]).to(dtype)
        x = x.float() if x.is_cpu and dtype is torch.bfloat16 else x
        tall = shape[0] > shape[1]
        x = x.mT if tall else x
        x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
        for _ in range(5):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
        updates |= zip(alike, (x.mT if tall else x).to(dtype))
    return [updates[i] for i in range(len(matrices))]


class Exchange:
    """Matrices cut over ranks, in whole and back. Built by all ranks together, each with what it holds of one group.

    A matrix is made whole on the rank that holds most of it; of ranks that hold as much, on each in turn.

    sent     the pieces here, in the order of the ranks that they go to: `out` elements to each
    arrived  the pieces that come here, in the order of the ranks that they come from: `back` elements from each
    """

    def __init__(self, held: list[Held]):
        everyone = ranks.gather([h._replace(owner=torch.empty(0)) for h in held])
        home: dict[str, int] = {}
        for number, name in enumerate(sorted({h.name for own in everyone for h in own})):
            sizes = [sum(h.size for h in own if h.name == name) for own in everyone]
            holders = [rank for rank, size in enumerate(sizes) if size == max(sizes)]
            home[name] = holders[number % len(holders)]
        self.sent = sorted(held, key=lambda h: home[h.name])
        self.arrived = [h for own in everyone for h in own if home[h.name] == ranks.rank()]
        self.out = [sum(h.size for h in held if home[h.name] == rank) for rank in range(len(everyone))]
        self.back = [sum(h.size for h in own if home[h.name] == ranks.rank()) for own in everyone]

    def orthogonalised(self, flat: Tensor) -> list[tuple[Held, Tensor]]:
        """Each piece here with its part of its matrix's update, bf16; `flat` is what is to be made orthogonal."""
        # On the device also where the optimizer's state is offloaded: that is where products are fast and ranks meet.
        send = [h.of(flat).to(ranks.device(), torch.bfloat16) for h in self.sent]
        arrived = self._swap(send, self.out, self.back).split([h.size for h in self.arrived])
        shapes = {h.name: h.shape for h in self.arrived}
        whole = {name: arrived[0].new_empty(shape) for name, shape in shapes.items()}
        pieces = [whole[h.name].view(-1)[h.start:h.start + h.size] for h in self.arrived]
        for piece, part in zip(pieces, arrived):
            piece.copy_(part)
        for matrix, update in zip(whole.values(), orthogonalise([*whole.values()])):
            matrix.copy_(update)
        return list(zip(self.sent, self._swap(pieces, self.back, self.out).split([h.size for h in self.sent])))

    def _swap(self, pieces: list[Tensor], out: list[int], back: list[int]) -> Tensor:
        tensor = torch.cat([torch.empty(0, device=ranks.device(), dtype=torch.bfloat16), *pieces])
        # As bytes: not every backend sends bfloat16.
        arrived = tensor.new_empty(sum(back)).view(torch.uint8)
        dist.all_to_all_single(arrived, tensor.view(torch.uint8), [2 * n for n in back], [2 * n for n in out])
        return arrived.view(torch.bfloat16)


class MuonAdamW(torch.optim.AdamW):
    """AdamW, with groups marked `muon=True` moved by Muon instead.

    exchanges  for every flat piece that ZeRO made of such a group, what its matrices are; empty without ZeRO
    """

    exchanges: dict[Tensor, Exchange] = {}

    @torch.no_grad()
    def step(self, closure=None):
        groups = self.param_groups
        for group in groups:
            if group["muon"]:
                self._muon(group)
        self.param_groups = [group for group in groups if not group["muon"]]
        super().step(closure)
        self.param_groups = groups

    def _muon(self, group: dict) -> None:
        params = [p for p in group["params"] if p.grad is not None or p in self.exchanges]
        if not params:
            return
        for p in params:
            if not self.state[p]:  # AdamW's loader wants a step
                self.state[p] |= {"momentum": torch.zeros_like(p), "step": torch.tensor(0.0)}
        gradients, momenta = [p.grad for p in params], [self.state[p]["momentum"] for p in params]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's look
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        if self.exchanges:
            moves = [(h.of(p), update, h.shape)
                     for p, whole in zip(params, ahead) for h, update in self.exchanges[p].orthogonalised(whole)]
        else:
            moves = zip(params, orthogonalise(ahead), (p.shape for p in params))
        for weights, update, shape in moves:
            stretch = max(1, shape[0] / shape[1]) ** 0.5  # same source
            weights.add_(update.to(weights), alpha=-group["lr"] * stretch)


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
    muon = isinstance(config, stages.Muon)
    matrices, lr = (block_matrices(module), config.adamw_lr) if muon else (set(), config.lr)
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
    return (MuonAdamW if muon else torch.optim.AdamW)(ordered, betas=config.betas, fused=True)


def multiplier(schedule: stages.Schedule, step: int, steps: int) -> float:
    """The learning rate as a factor of its highest, for update `step` (from 0) of `steps`: rises to 1, holds, falls
    towards `final`.

    The first update already moves, and so does the last: `final` is what an update after it would get.
    """
    warmup, anneal = round(schedule.warmup * steps), round(schedule.anneal * steps)
    if step < warmup:
        return (step + 1) / warmup
    done = step - (steps - anneal)
    if done <= 0:
        return 1.0
    left = 1 - done / anneal if schedule.shape == "linear" else (1 + math.cos(math.pi * done / anneal)) / 2
    return schedule.final + (1 - schedule.final) * left
