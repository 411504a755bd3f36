"""The loss of a large vocabulary, forward and backward through the head: ours against transformers' own.

Memory is the most that a fresh process holds above what it held before the loss, gradients of hidden states and head
included on both sides: all of it is what a step needs.
"""

import resource
from collections.abc import Iterable
from functools import partial

import torch
from torch import nn
from transformers.loss.loss_utils import ForCausalLMLoss

from tools.bench.rows import Row, alone, at_most, equal, faster, interleaved, main
from tools.losses import by_chunks, by_torch
from unimm.model.cross_entropy import chunk_of, weighted_loss


def setting(positions: int, ids: int, width: int):
    torch.manual_seed(0)
    head = nn.Linear(width, ids, bias=False)
    return torch.randn(positions, width, requires_grad=True), head, torch.randint(ids, (positions,))


def ours(hidden, head, targets, loss=weighted_loss):
    total, _ = loss(hidden, head, targets, torch.full((len(targets),), 1 / len(targets)))
    return total.detach(), *torch.autograd.grad(total, (hidden, head.weight))


def theirs(hidden, head, targets):
    """As every causal LM of transformers computes it; the targets are already those that follow."""
    loss = ForCausalLMLoss(head(hidden)[None], None, head.out_features, shift_labels=targets[None])
    return loss.detach(), *torch.autograd.grad(loss, (hidden, head.weight))


def peak(run, sizes) -> int:
    """Bytes by which a process's high-water mark rises."""
    given = setting(*sizes)
    given[1].weight.grad = None
    run(*setting(16, 64, 16))  # threads and workspaces that any loss needs
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(*given)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def rows(toy: bool = False) -> Iterable[Row]:
    sizes = [(256, 2048, 32)] if toy else [(2048, 32768, 256), (1024, 163840, 64)]
    measured = [[alone(partial(peak, run, size)) for run in (ours, theirs)] for size in sizes]
    for size, memory in zip(sizes, measured):
        given = setting(*size)
        for a, b in zip(ours(*given), theirs(*given), strict=True):
            equal(f"loss and gradients of {size}", a, b, 1e-5)
        name = "loss of {:,} positions, {:,} ids, width {}".format(*size)
        peer = "transformers' loss"
        yield faster(f"peak memory, {name}", peer, *(m / 2**20 for m in memory), "MiB", 0.01 if toy else 8)
        repeats = 1 if toy else 2
        yield at_most(f"time, {name}", peer, *interleaved(partial(ours, *given), partial(theirs, *given), repeats),
                      "CPU s", 100 if toy else 1.05)
    given = setting(*sizes[0])
    chunk = chunk_of(sizes[0][1], "cpu")
    for loss, library in ((partial(by_torch, chunk=chunk), "F.linear_cross_entropy"),
                          (by_chunks, "checkpointed chunks")):
        times = interleaved(partial(ours, *given), partial(ours, *given, loss), 1 if toy else 2)
        yield faster(f"time, one pass, {sizes[0][1]:,} ids", library, *times, "CPU s", 0.01 if toy else 1.0)


if __name__ == "__main__":
    main(rows)
