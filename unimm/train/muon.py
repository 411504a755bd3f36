"""Muon: matrices moved by the orthogonalised momentum of their gradient (Jordan 2024).

https://kellerjordan.github.io/posts/muon/ . `torch.optim.Muon` is the same update one matrix at a time; here
matrices of one shape share a batched iteration (1.8x at width 128, 1.3x at 192 on one CPU thread), and everything
that is no matrix of a block is moved by AdamW in the same optimizer.

ZeRO hands the optimizer flat pieces of matrices. Momentum is element-wise, so each rank keeps its own piece's; each
matrix is then brought together on one rank, orthogonalised there, and sent back in pieces, so that the work is shared
and whatever ZeRO cuts gives the curve of one process. (DeepSpeed's own Muon clips what it has orthogonalised, which
is another curve.)
"""

import torch
import torch.distributed as dist
from torch import Tensor

from unimm.train import ranks
from unimm.train.pieces import Held

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


def stretch(shape: tuple[int, ...]) -> float:
    """What the update of a matrix of (rows, columns) is multiplied by (same source)."""
    return max(1, shape[0] / shape[1]) ** 0.5


class Exchange:
    """Matrices cut over ranks, in whole and back. Built by all ranks together, each with what it holds of one group.

    everyone  per rank, its pieces in their order; matrix `name` belongs to the rank that holds most of it
    """

    def __init__(self, held: list[Held]):
        self.held = held
        self.everyone = ranks.gather([(h.name, h.shape, h.start, h.size) for h in held])
        shapes = {name: shape for own in self.everyone for name, shape, _, _ in own}
        self.home: dict[str, int] = {}
        for number, name in enumerate(sorted(shapes)):
            parts = [sum(size for n, _, _, size in own if n == name) for own in self.everyone]
            holders = [rank for rank, part in enumerate(parts) if part == max(parts)]
            self.home[name] = holders[number % len(holders)]
        self.mine = {name: shapes[name] for name, rank in self.home.items() if rank == ranks.rank()}
        counts = range(len(self.everyone))
        self.out = [sum(h.size for h in held if self.home[h.name] == rank) for rank in counts]
        self.back = [sum(size for n, _, _, size in self.everyone[rank] if n in self.mine) for rank in counts]
        # To every rank in turn, its matrices' pieces in the order in which they lie here.
        self.order = [h for rank in counts for h in held if self.home[h.name] == rank]

    def orthogonalised(self, flat: Tensor) -> list[tuple[Held, Tensor]]:
        """Each piece here with its part of its matrix's update, bf16; `flat` is what is to be made orthogonal."""
        # On the device also where the optimizer's state is offloaded: that is where products are fast and ranks meet.
        send = [flat[h.offset:h.offset + h.size].to(ranks.device(), torch.bfloat16) for h in self.order]
        nothing = torch.empty(0, device=ranks.device(), dtype=torch.bfloat16)
        arrived = self._swap(torch.cat([nothing, *send]), self.out, self.back)
        whole = {name: arrived.new_empty(shape) for name, shape in self.mine.items()}
        pieces, at = [], 0
        for own in self.everyone:
            for name, _, start, size in own:
                if name in whole:
                    pieces.append(whole[name].view(-1)[start:start + size])
                    pieces[-1].copy_(arrived[at:at + size])
                    at += size
        for shape in dict.fromkeys(self.mine.values()):
            alike = [whole[name] for name, s in self.mine.items() if s == shape]
            for matrix, update in zip(alike, orthogonalise(torch.stack(alike))):
                matrix.copy_(update)
        returned = self._swap(torch.cat([nothing, *pieces]), self.back, self.out)
        return list(zip(self.order, returned.split([h.size for h in self.order])))

    def _swap(self, tensor: Tensor, out: list[int], back: list[int]) -> Tensor:
        if len(self.everyone) == 1:
            return tensor
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
        alike: dict[tuple, list[Tensor]] = {}
        for p in group["params"]:
            if p in self.exchanges:
                self._cut(p, group)
            elif p.grad is not None:
                alike.setdefault(tuple(p.shape), []).append(p)
        for shape, params in alike.items():
            updates = orthogonalise(torch.stack(self._ahead(params, group))).to(params[0].dtype).unbind()
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, updates, alpha=-group["lr"] * stretch(shape))

    def _cut(self, p: Tensor, group: dict) -> None:
        ahead, = self._ahead([p], group)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        for held, update in self.exchanges[p].orthogonalised(ahead):
            p[held.offset:held.offset + held.size].add_(update.to(p), alpha=-group["lr"] * stretch(held.shape))

    def _ahead(self, params: list[Tensor], group: dict) -> list[Tensor]:
        """Nesterov's look ahead, after the momenta took in the gradients."""
        gradients = [p.grad for p in params]
        momenta = [self._momentum(p) for p in params]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        return torch._foreach_lerp(gradients, momenta, group["momentum"])

    def _momentum(self, p: Tensor) -> Tensor:
        if not self.state[p]:
            self.state[p] |= {"momentum": torch.zeros_like(p), "step": torch.tensor(0.0)}  # AdamW's loader wants a step
        return self.state[p]["momentum"]
