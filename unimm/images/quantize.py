"""What every quantizer is, feature maps to codes, and its kinds. One call and two inverses, the same for every kind.

    z (B, C, h, w) --forward--> Quantized(vectors (B, C, h, w), ids (B, P), loss)
    z              --ids_of---> ids int64 (B, P), P = h * w, row by row; never trains anything
    ids (..., P)   --codes_to_vectors--> float32 (..., P, C)

Where a position has several codes, ids are (..., P, depth). `vectors` equals `codes_to_vectors(ids)` bit for bit, and
its gradient goes straight through to z. Everything is computed in float32, whatever z is. The kinds:

    FiniteScalar, LookupFree                     no codebook: numbers rounded, signs
    VectorQuantizer                              a codebook of moving averages, the nearest code
    Codebook                                     the published ones', learned: the nearest (Chameleon, MoVQ, Emu3)
    UnitCodebook                                 of the smallest angle (LlamaGen, Janus)
    IndexBackpropagation                         learned, the largest inner product (IBQ, Emu3.5)
    ResidualQuantizer, ProductQuantizer          several codes a position: made of others
    Continuous                                   no codes

vector-quantize-pytorch is the reference in the tests and not used here: it takes 2.5 s to import, its LFQ drops the
result of its all-reduce, and whether its VQ synchronises ranks is decided once, when it is built.
"""

import math
from itertools import combinations
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from unimm.config import quantizers as config

DISTANCES = 2**26
"""Distances to codes held at a time: 256 MB. 131,072 codes by the 4,096 positions of one image would take 2 GB."""


class Quantized(NamedTuple):
    """vectors (B, C, h, w) of z's dtype; ids int64 (B, P), or (B, P, depth) where a position has several, or None where
    nothing is rounded; loss float32 () to be added to the training loss."""

    vectors: Tensor
    ids: Tensor | None
    loss: Tensor


class Quantizer(nn.Module):
    """What the kinds share. Each has `size` codes of `dim` channels and defines the methods that have no body here.
    Rows are z as float32 (N, C), N = B * h * w, brought to where the codes are by `settled`."""

    depth = 1
    """Codes a position; 0 where it has none, its vector being what is kept."""

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.size, self.dim = size, dim

    def settled(self, rows: Tensor) -> Tensor:
        """Rows as the kind compares them with its codes: squashed, or of length 1. Gradients pass through this."""
        return rows

    def _ids(self, rows: Tensor) -> Tensor:
        """-> int64 (N,) or (N, depth)"""

    def codes_to_vectors(self, ids: Tensor) -> Tensor:
        """int64 (...) or (..., depth) -> float32 (..., C)"""

    def _learn(self, rows: Tensor, ids: Tensor, vectors: Tensor) -> Tensor:
        """In training: update averages from what was just coded, return the loss (), here nothing."""
        return rows.new_zeros(())

    def _through(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """The vectors, with the gradient of what they stand for."""
        # Not rows + (vectors - rows): rounding would make training see other vectors than decoding does.
        return vectors + (rows - rows.detach())

    def _start(self, rows: Tensor) -> None:
        """In training, before coding: initialise from data where the kind does."""

    def ids_of(self, z: Tensor) -> Tensor:
        rows = self.settled(z.movedim(1, -1).flatten(0, 2).float())
        return self._ids(rows).unflatten(0, (len(z), -1))

    def forward(self, z: Tensor) -> Quantized:
        rows = self.settled(z.movedim(1, -1).flatten(0, 2).float())
        if self.training:
            self._start(rows.detach())
        ids = self._ids(rows.detach())
        vectors = self.codes_to_vectors(ids)
        loss = self._learn(rows, ids, vectors) if self.training else rows.new_zeros(())
        vectors = self._through(rows, vectors).unflatten(0, (len(z), *z.shape[2:])).movedim(-1, 1)
        return Quantized(vectors.to(z.dtype), ids.unflatten(0, (len(z), -1)) if self.depth else None, loss)


class Nearest(Quantizer):
    """The nearest of the vectors of a table."""

    def table(self) -> Tensor:
        """Every code's vector, float32 (size, dim)."""

    def _far(self, rows: Tensor, table: Tensor) -> Tensor:
        """What is least for the code of each row, (N, size)."""
        # |row - e|^2 without |row|^2, which is the same for every code
        return table.square().sum(1) - 2 * rows @ table.T

    @torch.no_grad()
    def _ids(self, rows):
        table = self.table()
        with torch.autocast(rows.device.type, enabled=False):
            some = rows.split(max(1, DISTANCES // self.size))
            return torch.cat([self._far(part, table).argmin(1) for part in some])

    def codes_to_vectors(self, ids):
        return F.embedding(ids, self.table().detach())


class FiniteScalar(Quantizer):
    """FSQ (Mentzer et al. 2023), its levels symmetric around 0 (Parker et al. 2024), so that two levels work too.

    Channel c is squashed to (-1, 1) and rounded to the nearest of its L levels; an id's digits are
    the levels, the first channel the least significant.
    """

    def __init__(self, kind: config.FSQ):
        levels = kind.levels
        super().__init__(math.prod(levels), len(levels))
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("basis", torch.tensor([1, *levels[:-1]]).cumprod(0), persistent=False)

    def settled(self, rows):
        return rows.tanh()

    def _ids(self, rows):
        digits = ((rows + 1) * ((self.levels - 1) / 2)).round().long()
        return (digits * self.basis).sum(-1)

    def codes_to_vectors(self, ids):
        digits = (ids[..., None] // self.basis) % self.levels
        return digits * (2 / (self.levels - 1)) - 1


class LookupFree(Quantizer):
    """LFQ (Yu et al. 2023) or, with `spherical`, BSQ (Zhao et al. 2024): the signs of the channels.

    The loss rewards codes that are sure (low entropy each) and all used (high entropy together). The
    first is exact, since bits are independent given z; the second is exact within groups of GROUP
    bits and adds the groups up (BSQ, eq. 10), as 2^18 codes times a batch would not fit in memory.
    Commitment keeps z near its code (Open-MAGVIT2, Luo et al. 2024). Each rank takes its own batch's entropy.
    """

    GROUP, COMMITMENT = 9, 0.25

    def __init__(self, kind: config.LFQ):
        super().__init__(2**kind.bits, kind.bits)
        self.kind = kind
        self.scale = 1 / math.sqrt(kind.bits) if kind.spherical else 1.0
        self.register_buffer("basis", 2 ** torch.arange(kind.bits - 1, -1, -1), persistent=False)

    def settled(self, rows):
        return F.normalize(rows, dim=-1) if self.kind.spherical else rows

    def _ids(self, rows):
        return ((rows > 0) * self.basis).sum(-1)

    def codes_to_vectors(self, ids):
        return ((ids[..., None] & self.basis) != 0).float() * (2 * self.scale) - self.scale

    def _learn(self, rows, ids, vectors):
        # Probability of a bit under a softmax over codes of -|z - code|^2 / SOFTNESS, in units of the code's scale.
        logits = 4 * rows / self.scale
        entropy_each = (F.softplus(logits) - logits * logits.sigmoid()).sum(-1).mean()  # of each bit, in nats
        entropy_all = sum(_joint_entropy(group) for group in logits.split(self.GROUP, dim=-1))
        return self.kind.entropy_weight * (entropy_each - entropy_all) + self.COMMITMENT * F.mse_loss(rows, vectors)


def _joint_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of the average over N of distributions over 2^G codes with independent bits (N, G)."""
    p = logits.new_ones(len(logits), 1)
    for bit in logits.split(1, dim=1):
        p = torch.cat([p * (-bit).sigmoid(), p * bit.sigmoid()], dim=1)  # (N, 2^(i+1))
    p = p.mean(0)
    return -(p * p.clamp_min(1e-9).log()).sum()


class VectorQuantizer(Nearest):
    """VQ whose codebook is a moving average of the vectors given to it (van den Oord et al. 2017, A.1).

    It starts from vectors of the first batch. After each step codes whose moving count is below
    `dead_below` are moved onto vectors of the batch, drawn by squared distance to their code as in
    k-means++, so that they go where the codebook is coarse and not onto the background again.
    Ranks stay equal, and equal to one process on the whole batch: counts and sums are summed over them, draws are
    from all ranks' vectors, and rank 0's draws are everyone's.
    """

    def __init__(self, kind: config.VQ):
        super().__init__(kind.size, kind.dim)
        self.kind = kind
        self.register_buffer("codebook", torch.randn(kind.size, kind.dim))
        self.register_buffer("counts", torch.zeros(kind.size))
        self.register_buffer("sums", torch.zeros(kind.size, kind.dim))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def _apply(self, fn, recurse=True):
        """Averages stay float32 when the model is cast: bfloat16 rounds a step of 1 - decay away."""
        super()._apply(fn, recurse)
        for name in ("codebook", "counts", "sums"):
            setattr(self, name, getattr(self, name).float())
        return self

    def table(self):
        return self.codebook

    def _start(self, rows):
        if not self.started:
            self._move(torch.ones_like(self.counts, dtype=torch.bool), rows, rows.new_ones(len(rows)))
            self.started.fill_(True)

    def _learn(self, rows, ids, vectors):
        coded = rows.detach()
        batch = coded.new_zeros(self.size, self.dim + 1).index_add_(0, ids, F.pad(coded, (0, 1), value=1.0))
        if dist.is_initialized():
            dist.all_reduce(batch)
        self.counts.lerp_(batch[:, -1], 1 - self.kind.decay)
        self.sums.lerp_(batch[:, :-1], 1 - self.kind.decay)
        seen = self.counts > 1e-6
        self.codebook[seen] = self.sums[seen] / self.counts[seen, None]
        self._move(self.counts < self.kind.dead_below, coded, (coded - vectors).square().sum(1))
        return self.kind.commitment * F.mse_loss(rows, vectors)

    def _move(self, codes: Tensor, z: Tensor, weight: Tensor) -> None:
        """Move the chosen codes, bool (size,), onto rows of all ranks' z (N, C), N each one's own, drawn by weight."""
        n = int(codes.sum())  # the same on every rank, as the counts are
        if n == 0:
            return
        rows = torch.cat([z, weight[:, None]], 1)
        if dist.is_initialized() and dist.get_world_size() > 1:
            found = [rows] * dist.get_world_size()
            dist.all_gather_object(found, rows.cpu())
            rows = torch.cat(found).to(rows.device)
        drawn = rows[torch.multinomial(rows[:, -1] + 1e-12, n, replacement=n > len(rows)), :-1].contiguous()
        if dist.is_initialized():
            dist.broadcast(drawn, src=0)
        count = 2 * self.kind.dead_below  # time to prove itself: ln 2 / (1 - decay) steps without a vector
        self.codebook[codes], self.sums[codes], self.counts[codes] = drawn, drawn * count, count


class Codebook(Nearest):
    """The nearest of `size` learned vectors. Trained by its own loss alone, as in VQGAN: 1 part for the code,
    0.25 parts for the encoder's output."""

    def __init__(self, kind: config.IndexBackprop):
        super().__init__(kind.size, kind.dim)
        self.embedding = nn.Embedding(kind.size, kind.dim)
        nn.init.uniform_(self.embedding.weight, -1 / kind.size, 1 / kind.size)

    def table(self):
        return self.embedding.weight.float()

    def _learn(self, rows, ids, vectors):
        return F.mse_loss(F.embedding(ids, self.table()), rows.detach()) + 0.25 * F.mse_loss(rows, vectors)


class UnitCodebook(Codebook):
    """Codes and what is coded are scaled to length 1: the nearest code is that of the smallest angle.

    transformers' JanusVQVAE.encode does not normalise as the release does: it takes the nearest code by plain
    distance, so its ids are the release's only where the stored codes are unit vectors already. Its decode
    normalises. Here the release's rule holds for both.
    """

    def table(self):
        return F.normalize(super().table(), dim=-1)

    def settled(self, rows):
        return F.normalize(rows, dim=-1)


class IndexBackpropagation(Codebook):
    """The code of the largest inner product (Shi et al. 2024). In training the choice itself carries a gradient: what
    passes through is the mean of all codes under the softmax, so that every code learns at every step.

    The loss is the release's; codes that are sure and all used are rewarded where `entropy_weight` is above 0 (4.1).
    """

    def __init__(self, kind: config.IndexBackprop):
        super().__init__(kind)
        self.kind = kind
        nn.init.normal_(self.embedding.weight)  # of so many that are all near 0, one alone would be chosen

    def _far(self, rows, table):
        return -rows @ table.T

    def codes_to_vectors(self, ids):
        return F.embedding(ids, self.table())

    def _through(self, rows, vectors):
        if self.training and torch.is_grad_enabled():
            rows = F.softmax(rows @ self.table().T, dim=1) @ self.table().detach()
        return super()._through(rows, vectors)

    def _learn(self, rows, ids, vectors):
        loss = (F.mse_loss(self._through(rows, vectors), rows) + F.mse_loss(rows, vectors.detach())
                + self.kind.commitment * F.mse_loss(vectors, rows.detach()))
        if self.kind.entropy_weight:
            p, entropy = F.softmax(rows @ self.table().T, dim=1), torch.special.entr
            loss = loss + self.kind.entropy_weight * (entropy(p).sum(1).mean() - entropy(p.mean(0)).sum())
        return loss


class ResidualQuantizer(Quantizer):
    """`depth` codes out of one codebook, each the nearest to what those before it left over; their vectors add up
    (Lee et al. 2022, RQ-VAE, 3.1). The codebook learns from what is left over at every depth, and the loss is that of
    all depths, each against what was left for it (eq. 7), their mean."""

    def __init__(self, kind: config.Residual):
        super().__init__(kind.of.size, kind.of.dim)
        self.of, self.depth = VectorQuantizer(kind.of), kind.depth

    def _ids(self, rows):
        found = []
        for _ in range(self.depth):
            found.append(self.of._ids(rows))
            rows = rows - self.of.codes_to_vectors(found[-1])
        return torch.stack(found, -1)

    def codes_to_vectors(self, ids):
        each = self.of.codes_to_vectors(ids).unbind(-2)
        return sum(each[1:], each[0])  # one after the other, so that no shape of ids rounds otherwise

    def _start(self, rows):
        self.of._start(rows)

    def _learn(self, rows, ids, vectors):
        each = self.of.codes_to_vectors(ids)  # (N, depth, C)
        left = rows[:, None] - (each.cumsum(1) - each)
        return self.of._learn(left.flatten(0, 1), ids.flatten(), each.flatten(0, 1))


class ProductQuantizer(Quantizer):
    """Codebooks side by side, each with its share of the channels (Bai et al. 2024, FQGAN, 3.1)."""

    def __init__(self, kind: config.Product):
        super().__init__(kind.of.size, kind.parts * kind.of.dim)
        self.parts = nn.ModuleList(VectorQuantizer(kind.of) for _ in range(kind.parts))
        self.depth, self.disentangle = kind.parts, kind.disentangle

    def _shares(self, rows: Tensor):
        return zip(self.parts, rows.chunk(self.depth, dim=-1))

    def _ids(self, rows):
        return torch.stack([part._ids(share) for part, share in self._shares(rows)], -1)

    def codes_to_vectors(self, ids):
        return torch.cat([part.codes_to_vectors(some) for part, some in zip(self.parts, ids.unbind(-1))], -1)

    def _start(self, rows):
        for part, share in self._shares(rows):
            part._start(share)

    def _learn(self, rows, ids, vectors):
        losses = [part._learn(share, some, own) for (part, share), some, own
                  in zip(self._shares(rows), ids.unbind(-1), vectors.chunk(self.depth, dim=-1))]
        # The codebooks are averages, so what is to point elsewhere is what the encoder puts into them.
        alike = [F.cosine_similarity(a, b, dim=-1).square().mean()
                 for a, b in combinations(self._through(rows, vectors).chunk(self.depth, dim=-1), 2)]
        return sum(losses) / self.depth + self.disentangle * sum(alike) / len(alike)


class Continuous(Quantizer):
    """Nothing is rounded: latents of length sqrt(dim), so that a channel's mean square is 1, with noise in training.
    They are their own ids, float32 (..., C), but to `forward`, which has none."""

    depth = 0

    def __init__(self, kind: config.Unquantized):
        super().__init__(0, kind.dim)
        self.noise = kind.noise

    def settled(self, rows):
        return F.rms_norm(rows, rows.shape[-1:])

    def _ids(self, rows):
        return rows

    def codes_to_vectors(self, ids):
        return ids

    def _through(self, rows, vectors):
        return rows + self.noise * torch.randn_like(rows) if self.training else rows


KINDS = {config.FSQ: FiniteScalar, config.LFQ: LookupFree, config.VQ: VectorQuantizer,
         config.IndexBackprop: IndexBackpropagation, config.Residual: ResidualQuantizer,
         config.Product: ProductQuantizer, config.Unquantized: Continuous}


def build_quantizer(kind: config.Quantizer) -> Quantizer:
    return KINDS[type(kind)](kind)
