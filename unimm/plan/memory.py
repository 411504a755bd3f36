"""Bytes that one rank holds while it trains, by part: plain arithmetic over a model's counts.

    weights      as they are multiplied with: fp32, or bf16 from zero 1 on (at zero 0 bf16 is autocast of fp32)
    gradients    between backward and update, in the weights' type
    optimizer    AdamW's two fp32 moments (Muon: one, of matrices); from zero 1 on also fp32 copies of what trains
    average      the moving average of the trained weights, fp32
    activations  what autograd keeps of one micro-batch
    logits       of one chunk of the loss with their gradient, and the gradient of the head that is made with them
    buffers      what DeepSpeed gathers and reduces in
    tokenizer    the image tokenizer beside a language model, for previews
    reserve      the driver's context, NCCL, and what the allocator can't use

The first three are counted by `unimm.train.table`. Buffers are those of DeepSpeed 0.19, measured
(tests/plan/test_memory.py).
"""

from dataclasses import dataclass, replace
from itertools import product

from unimm.config.check import ConfigError
from unimm.config.stages import NextToken, Stage
from unimm.train.engine import deepspeed_config
from unimm.train.shares import Shares, shares
from unimm.train.table import footprint

LIVE = 1_000_000_000
"""DeepSpeed's stage3_max_live_parameters: how many gathered elements a rank may hold at zero 3."""
SUB_GROUP = 1_000_000_000
"""DeepSpeed's sub_group_size: how many elements an update at zero 3 takes at once."""
RESERVE, UNUSABLE = 1.5 * 2**30, 0.04
"""Ours, for a GPU: bytes of the context and NCCL, and the share of memory lost to fragmentation."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a model is made of, in elements; bytes of activations are those of one row (or image)."""

    parameters: int
    trained: int
    matrices: int = 0
    """Of the trained ones, those that Muon moves."""
    small: int = 0
    """Elements in parameters below PERSIST."""
    once: int = 0
    """Activations that more rows don't add to: the weights' copies in bf16 under autocast, positions."""
    row: int
    row_recomputed: int
    """Activations of a row where each layer keeps its input only, with one whole layer that is computed again."""
    tokenizer: int = 0
    """Bytes of the image tokenizer."""
    head: "Head | None" = None

    @property
    def moments(self) -> int:
        """fp32 values that the optimizer keeps."""
        return 2 * self.trained - self.matrices

    def activations(self, rows: int, recompute: bool) -> int:
        """Bytes that autograd keeps of so many rows."""
        return self.once + rows * (self.row_recomputed if recompute else self.row)


@dataclass(frozen=True, kw_only=True)
class Head:
    """What the loss in one pass over a head holds (`unimm.model.cross_entropy`)."""

    ids: int
    width: int
    trained: bool
    capped: bool
    chunk: int
    """The most positions whose logits exist at one time."""

    def bytes(self, tokens: int, half: bool, cast: bool) -> int:
        """At the moment when it holds most: as the logits turn into their gradient, or that meets the hidden states.

        tokens  positions, all taken to be learned
        half    products are in bf16, `cast` from fp32 weights
        """
        weight, logits = self.ids * self.width, min(self.chunk, tokens) * self.ids
        hidden = (2 if half else 4) * tokens * self.width
        turning = (6 if half else 4) + (0 if not self.capped else 2 if half else 4)
        # In bf16 the head's gradient of a chunk is made beside the sum of all of them, which is fp32.
        meeting = 2 * logits + 2 * weight * self.trained if half else 4 * logits
        kept = 4 * weight * self.trained + hidden + (2 * weight + hidden) * cast
        return max(turning * logits, meeting) + kept


def memory(counts: Counts, stage: Stage, cut: Shares, gpu: bool = True) -> tuple[dict[str, int], int]:
    """Bytes of a rank's device by part, at the moment of a step when it holds most; and bytes of its host memory."""
    half = stage.precision == "bf16"
    held = footprint(counts.parameters, counts.trained, counts.small, counts.moments, stage, cut)
    share = counts.trained / cut.ranks
    average = 4 * (share if stage.zero else counts.trained) if stage.ema else 0
    logits = counts.head.bytes(cut.rows * cut.tokens, half, half and stage.zero == 0) if counts.head else 0
    kept, passing = buffers(counts, stage, cut)
    activations = counts.activations(cut.rows, recomputes(stage))
    # The update makes fp32 gradients when activations are gone: it counts where it takes more than they do.
    moved = min(share, SUB_GROUP) if stage.zero == 3 else share
    update = 4 * moved if stage.zero and not stage.offload else 0
    passing += max(0, update - activations - logits - passing)
    parts = {**held._asdict(), "average": average, "activations": activations, "logits": logits,
             "buffers": kept + passing, "tokenizer": counts.tokenizer}
    host = 0.0
    if stage.offload:  # gradients wait in fp32 beside the masters, and a copy of these in the weights' type
        host = held.optimizer + held.gradients + average + (2 if half else 4) * share
        parts |= {"gradients": 0, "optimizer": 0, "average": 0}
    parts["reserve"] = RESERVE + UNUSABLE * sum(parts.values()) if gpu else 0
    return {name: round(number) for name, number in parts.items()}, round(host)


def recomputes(stage: Stage) -> bool:
    return isinstance(stage, NextToken) and stage.recompute


def buffers(counts: Counts, stage: Stage, cut: Shares) -> tuple[float, float]:
    """DeepSpeed's own bytes on a device: those it keeps, and those that pass during forward and backward."""
    each = 2 if stage.precision == "bf16" and stage.zero else 4
    bucket = deepspeed_config(stage, cut.ranks, counts.parameters)["zero_optimization"]["reduce_bucket_size"]
    if stage.zero == 3:
        gathered = min(LIVE, counts.parameters - counts.small) if cut.ranks > 1 else 0
        return each * bucket, each * gathered
    return 0, each * min(bucket, counts.trained) if stage.zero or cut.ranks > 1 else 0


def remedy(counts: Counts, stage: Stage, world: int, limit: int, gpu: bool = True) -> Stage | None:
    """The stage with the mildest change of fields that fits into `limit` bytes, or None where none does.

    Mildest first: fewer rows at once costs little, recomputing a third of the work, ZeRO traffic, offload most.
    """
    rows = shares(stage, world).rows
    micros = [rows]
    while micros[-1] > 1:
        micros.append(next(n for n in range(micros[-1] // 2, 0, -1) if rows % n == 0))
    for offload, zero, again, micro in product(sorted({stage.offload, True}), range(stage.zero, 4),
                                               sorted({recomputes(stage), True}), [stage.micro, *micros[1:]]):
        recompute = {"recompute": again} if isinstance(stage, NextToken) else {}
        try:
            changed = replace(stage, offload=offload, zero=zero, micro=micro, **recompute)
        except ConfigError:  # fields that exclude one another
            continue
        if sum(memory(counts, changed, shares(changed, world), gpu)[0].values()) <= limit:
            return changed
    return None
