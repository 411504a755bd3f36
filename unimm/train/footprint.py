"""Bytes of weights, gradients and optimizer on one rank: what the table before step 1 and `unimm plan` both count.

At stage 0 weights and gradients are fp32. From stage 1 on they have the stage's precision, and the optimizer, with
fp32 masters of what it moves, is shared out, and with it the gradients that wait for the update: at stage 1 DeepSpeed
0.19 drops the others as soon as a bucket is reduced. At stage 3 weights are shared out too (Rajbhandari et al. 2020,
arXiv:1910.02054, section 5). Measured in tests/plan/test_memory.py and by tools/bench/zero.py.
"""

from typing import NamedTuple

PERSIST = 100_000
"""DeepSpeed's stage3_param_persistence_threshold: parameters of fewer elements stay whole on every rank."""


class Footprint(NamedTuple):
    """Bytes on one rank, be it on its device or, where the optimizer is offloaded, the last two in host memory."""

    weights: float
    gradients: float
    optimizer: float


def footprint(size: int, moved: int, small: int, moments: int, *, zero: int, bf16: bool, world: int,
              accumulated: int = 1, offload: bool = False) -> Footprint:
    """What a rank holds between backward and update, but for activations and the buffers of collectives.

    size         elements of all tensors
    moved        elements of the tensors that have a gradient
    small        elements of the tensors of fewer than PERSIST
    moments      fp32 values that the optimizer keeps: 2 for each of `moved` in AdamW, 1 in Muon
    accumulated  forwards of a rank in a step. Their gradients are added up in fp32, and in bf16 at stage 1 as at
                 stage 2 (see `unimm.train.sharded`); in fp32 at stage 1 every rank adds up all of them
    """
    if zero == 0:
        return Footprint(4 * size, 4 * moved, 4 * moments)
    each = 2 if bf16 else 4
    # On one rank a small tensor's share is the tensor.
    weights = each * (size / world + (small if world > 1 else 0)) if zero == 3 else each * size
    whole = zero == 1 and not bf16 and accumulated > 1
    summed = 4 if accumulated > 1 or offload else each
    return Footprint(weights, summed * moved / (1 if whole else world), 4 * (moments + moved) / world)
