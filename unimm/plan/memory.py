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

The first three are counted by `unimm.train.footprint`. Buffers are those of DeepSpeed 0.19, measured
(tests/plan/test_memory.py).
"""

from dataclasses import dataclass, replace

from unimm.train.footprint import footprint

LIVE = 1_000_000_000
"""DeepSpeed's stage3_max_live_parameters: how many gathered elements a rank may hold at zero 3."""
SUB_GROUP = 1_000_000_000
"""DeepSpeed's sub_group_size: how many elements an update at zero 3 takes at once."""
RESERVE, UNUSABLE = 1.5 * 2**30, 0.04
"""Ours, for a GPU: bytes of the context and NCCL, and the share of memory lost to fragmentation."""
PARTS = ("weights", "gradients", "optimizer", "average", "activations", "logits", "buffers", "tokenizer", "reserve")


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


@dataclass(frozen=True, kw_only=True)
class Head:
    """What the loss in one pass over a head holds (`unimm.model.cross_entropy`)."""

    ids: int
    width: int
    trained: bool
    half: bool
    """Products in bf16; `cast` from fp32 weights."""
    cast: bool
    capped: bool
    tokens: int
    """Positions of a row, all taken to be learned."""
    chunk: int
    """The most positions whose logits exist at one time."""

    def bytes(self, rows: int) -> int:
        """At the moment when it holds most: as the logits turn into their gradient, or that meets the hidden states."""
        tokens, weight = rows * self.tokens, self.ids * self.width
        logits, hidden = min(self.chunk, tokens) * self.ids, (2 if self.half else 4) * tokens * self.width
        turning = (6 if self.half else 4) + (0 if not self.capped else 2 if self.half else 4)
        # In bf16 the head's gradient of a chunk is made beside the sum of all of them, which is fp32.
        meeting = 2 * logits + 2 * weight * self.trained if self.half else 4 * logits
        kept = 4 * weight * self.trained + hidden + (2 * weight + hidden) * self.cast
        return max(turning * logits, meeting) + kept


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a stage and a cluster choose."""

    world: int
    zero: int = 0
    bf16: bool = False
    offload: bool = False
    recompute: bool = False
    average: bool = False
    micro: int
    """Rows in one forward on one rank."""
    accumulated: int = 1
    """Forwards of a rank in a step."""
    bucket: int = 500_000_000
    """Elements that DeepSpeed reduces at once."""
    gpu: bool = True

    def instead(self, **changes) -> "Settings":
        """The same step in other shares: rows that a smaller `micro` leaves over are accumulated."""
        micro = changes.get("micro", self.micro)
        return replace(self, accumulated=self.accumulated * self.micro // micro, **changes)


def memory(counts: Counts, at: Settings) -> tuple[dict[str, int], int]:
    """Bytes of a rank's device by part, at the moment of a step when it holds most; and bytes of its host memory."""
    held = footprint(counts.parameters, counts.trained, counts.small, counts.moments, zero=at.zero, bf16=at.bf16,
                     world=at.world, accumulated=at.accumulated, offload=at.offload)
    share = counts.trained / at.world
    average = 4 * (share if at.zero else counts.trained) if at.average else 0
    logits = counts.head.bytes(at.micro) if counts.head else 0
    kept, passing = buffers(counts, at)
    activations = counts.once + at.micro * (counts.row_recomputed if at.recompute else counts.row)
    # The update makes fp32 gradients when activations are gone: it counts where it takes more than they do.
    update = 4 * (min(share, SUB_GROUP) if at.zero == 3 else share) if at.zero and not at.offload else 0
    passing += max(0, update - activations - logits - passing)
    parts = {**held._asdict(), "average": average, "activations": activations, "logits": logits,
             "buffers": kept + passing, "tokenizer": counts.tokenizer}
    host = 0.0
    if at.offload:  # gradients wait in fp32 beside the masters, and a copy of these in the weights' type
        host = held.optimizer + held.gradients + average + (2 if at.bf16 else 4) * share
        parts |= {"gradients": 0, "optimizer": 0, "average": 0}
    parts["reserve"] = RESERVE + UNUSABLE * sum(parts.values()) if at.gpu else 0
    return {name: round(parts[name]) for name in PARTS}, round(host)


def buffers(counts: Counts, at: Settings) -> tuple[float, float]:
    """DeepSpeed's own bytes on a device: those it keeps, and those that pass during forward and backward."""
    each = 2 if at.bf16 and at.zero else 4
    match at.zero:
        case 0:
            return 0, each * min(at.bucket, counts.trained) if at.world > 1 else 0
        case 3:
            gathered = min(LIVE, counts.parameters - counts.small) if at.world > 1 else 0
            return each * min(at.bucket, counts.parameters), each * gathered
        case _:
            return 0, each * min(at.bucket, counts.trained)


def remedy(counts: Counts, at: Settings, limit: int) -> Settings | None:
    """The mildest change of settings that fits into `limit` bytes, or None where none does.

    Mildest first: fewer rows at once costs little, recomputing a third of the work, ZeRO traffic, offload most.
    """
    halves = [at.micro]
    while halves[-1] > 1:
        halves.append(next(n for n in range(halves[-1] // 2, 0, -1) if at.micro % n == 0))
    tries = [at.instead(offload=offload, zero=zero, recompute=recompute, micro=micro)
             for offload in sorted({at.offload, True}) for zero in range(at.zero, 4) if zero or not offload
             for recompute in sorted({at.recompute, True}) for micro in halves]
    return next((s for s in tries if sum(memory(counts, s)[0].values()) <= limit), None)
