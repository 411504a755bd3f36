"""From logits to one id a row: temperature, filters, and noise that depends on nothing but seed, place and id.

The largest of logit / temperature + Gumbel noise is a draw from the softmax (Gumbel 1954; Maddison et al. 2014,
arXiv:1411.0030). The noise is a hash, no stream: a row does not depend on its neighbours, nothing has to be saved, and
the same place asked twice gives the same draw, which makes Jacobi decoding exact.

    N rows   V ids that are allowed   K the most that top-k leaves of them

Places at which an id is chosen in the same way, and the ids of which one may come there.

    N places   V ids that may come   W width
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unimm.config.sampling import Choice
from unimm.model.cache import sent
from unimm.model.unified import UnifiedModel


def mixed(x: np.ndarray) -> np.ndarray:
    """uint64 -> uint64 that looks like chance: splitmix64's finalizer (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def marks(ids: np.ndarray) -> np.ndarray:
    """What noise knows ids (V,) by, int32 (V,)."""
    key = mixed(ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return (key >> np.uint64(32)).astype(np.uint32).view(np.int32)


def places(seeds: np.ndarray, written: np.ndarray) -> np.ndarray:
    """What noise knows a place by, int32 (N, 2): seeds uint64 (N,), and how many ids were written before it."""
    key = mixed(mixed(seeds + np.uint64(1)) + written.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return key[:, None].view(np.int32)


def gumbel(place: Tensor, mark: Tensor) -> Tensor:
    """float32 (N, K): noise at `place` int32 (N, 2) for ids marked (N or 1, K), alike on every device."""
    x = mark ^ place[:, :1]
    x = (x ^ (x >> 16 & 0xFFFF)).mul_(0x7FEB352D)  # Wellons's lowbias32, where torch's >> keeps the sign
    x.add_(place[:, 1:])
    x = (x ^ (x >> 15 & 0x1FFFF)).mul_(0x846CA68B - (1 << 32))
    x = (x ^ (x >> 16)) & 0x7FFFFFFF
    # Near 0, where what wins comes from, float32 is fine; near 1 the factor keeps it below 1.
    x = (x.float() + 0.5) * (2.0 ** -31 * (1 - 2.0 ** -22))
    return x.neg_().log1p_().neg_().log_().neg_()


def normal(place: Tensor, mark: Tensor) -> Tensor:
    """float32 (N, K): normal noise in the way of `gumbel`."""
    uniform = torch.exp(-torch.exp(-gumbel(place, mark))).clamp(1e-6, 1 - 1e-6)
    return math.sqrt(2) * torch.erfinv(2 * uniform - 1)


def adaptive_top_k(logits: Tensor, most: int) -> Tensor:
    """How many ids each row of logits (N, V) keeps, int64 (N,), between 1 and `most`: more where it is less certain.

    `1 + (most - 1) sigmoid(H - 5)`, H being the entropy of the guided logits in nats (PURE, arXiv:2503.11073; in
    nonwhy/PURE, commit 4fb5553, pure/inference_solver.py, `_calculate_dynamic_top_k`, where `most` is 2000).
    """
    entropy = torch.special.entr(logits.double().softmax(-1)).sum(-1).clamp(0, 10)
    return (1 + (most - 1) * torch.sigmoid(entropy - 5)).round().long()


def choose(logits: Tensor, how: Choice, place: Tensor | None = None, mark: Tensor | None = None) -> Tensor:
    """The chosen column of each row of float32 logits (N, V), int64 (N,); `place` and `mark` as in `gumbel`.

    The likeliest at temperature 0, which needs neither.
    """
    if how.temperature == 0:
        return _likeliest(logits)
    columns = None
    keep = adaptive_top_k(logits, how.adaptive_k)[:, None] if how.adaptive_k else None
    most = min(k for k in (how.top_k, how.adaptive_k, logits.shape[1]) if k)
    if most < logits.shape[1]:
        logits, columns = _largest(logits, most)
        mark = mark[columns] if mark.ndim == 1 else mark.expand(len(logits), -1).gather(1, columns)
    scaled = logits / how.temperature
    if keep is not None or how.top_p < 1:
        floor = _floor(scaled, keep, how.top_p)
        scaled.masked_fill_(scaled < floor, -torch.inf)
    if how.min_p:
        scaled.masked_fill_(scaled < scaled.amax(-1, True) + np.log(how.min_p), -torch.inf)
    chosen = _likeliest(scaled.add_(gumbel(place, mark)))
    return chosen if columns is None else columns.gather(1, chosen[:, None])[:, 0]


def _floor(scaled: Tensor, keep: Tensor | None, top_p: float) -> Tensor:
    """The smallest of scaled logits (N, K) that stays, (N, 1)."""
    ordered = _descending(scaled)
    count = torch.full_like(ordered[:, :1], ordered.shape[1], dtype=torch.long)
    if keep is not None:
        count = torch.minimum(count, keep)
        ordered = ordered.masked_fill(torch.arange(ordered.shape[1], device=ordered.device) >= count, -torch.inf)
    if top_p < 1:
        before = ordered.softmax(-1).cumsum(-1, dtype=torch.float64).roll(1, -1)
        before[:, 0] = 0  # the first always stays
        count = torch.minimum(count, (before < top_p).sum(-1, keepdim=True))
    return ordered.gather(1, count - 1)


# A CPU's sorting is numpy's: at 32,768 columns 0.06 ms beside torch's 2.8, the 2,048 largest 0.05 beside 0.5, the
# largest 0.002 beside 0.1.

def _likeliest(x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy().argmax(-1)) if x.is_cpu else x.argmax(-1)


def _largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their columns, in any order."""
    if not x.is_cpu:
        return tuple(x.topk(k, -1, sorted=False))
    columns = torch.from_numpy(np.argpartition(x.numpy(), x.shape[1] - k, -1)[:, -k:])
    return x.gather(1, columns), columns


def _descending(x: Tensor) -> Tensor:
    return torch.from_numpy(np.sort(x.numpy(), -1)[:, ::-1].copy()) if x.is_cpu else x.sort(-1, descending=True).values


NEAR = 64
"""A gap of at most so many ids is computed along rather than cut out."""
RUNS = 8
"""The most slices of one head."""


class Allowed:
    """Ascending ids as columns of logits over slices of the head: its weights are never copied.

    head    hidden states to float32 logits of the columns, as `UnifiedModel.head` gives it
    only    the one id, where there is but one
    banned  columns of ids that lie between and are not allowed
    ids     of the columns, int64 (V,); `first` where they are all in a row from it on
    marks   int32 (V,): what noise knows the columns by
    """

    def __init__(self, ids: np.ndarray, model: UnifiedModel):
        device = model.device
        gaps = np.diff(ids) - 1
        cut = np.flatnonzero(gaps > NEAR)
        cut = np.sort(cut[np.argsort(gaps[cut], kind="stable")[::-1][:RUNS - 1]])
        runs = tuple(slice(int(run[0]), int(run[-1]) + 1) for run in np.split(ids, cut + 1))
        columns = np.concatenate([np.arange(run.start, run.stop) for run in runs])
        self.head, self.first = model.head(runs), runs[0].start if len(runs) == 1 else None
        self.only = int(ids[0]) if len(ids) == 1 else None
        banned = np.flatnonzero(~np.isin(columns, ids))
        self.banned = torch.from_numpy(banned).to(device) if len(banned) else None
        self.ids = torch.from_numpy(columns).to(device)
        self.marks = torch.from_numpy(marks(columns)).to(device)


@dataclass(frozen=True, eq=False)
class Group:
    """Places of rows, counted row by row, t in each.

    items     which they are, int64 (N,); `spots` the same on the device
    hidden    where their states lie, int64 (N,) or (N, branches); None: all in order
    weights   float32 (N, branches) of guided ones
    number    of the set of ids
    """

    items: np.ndarray
    spots: Tensor
    hidden: Tensor | None
    weights: Tensor | None
    number: int
    allowed: Allowed
    how: Choice

    def logits(self, hidden: Tensor) -> Tensor | None:
        """float32 (N, V) from the states of all places, -inf where an id is not allowed; None where there is no choice.
        """
        if self.allowed.only is not None:
            return None
        logits = self.allowed.head(hidden if self.hidden is None else hidden[self.hidden], self.weights)
        return logits if self.allowed.banned is None else logits.index_fill_(1, self.allowed.banned, -torch.inf)

    def ids(self, logits: Tensor | None, now: np.ndarray, row: np.ndarray, ahead: np.ndarray) -> Tensor:
        """An id from each row of logits (n, V), int64 (n,), by the noise of a `row` of `now` and a place behind it."""
        if logits is None:
            return torch.full((len(self.items),), self.allowed.only, device=self.spots.device)
        place = None if self.how.temperature == 0 else sent(
            places(now["seed"][row], now["written"][row] + ahead), logits.device)
        columns = choose(logits, self.how, place, self.allowed.marks)
        return self.allowed.ids[columns] if self.allowed.first is None else columns + self.allowed.first
