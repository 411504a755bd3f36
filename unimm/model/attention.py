"""Attention over packed rows: every document sees itself alone.

Supplied to any transformers model through its attention interface, so no model code is copied. Which kernel
does it is chosen by what there is: device, dtype, installed packages, row length.

    B rows   H heads   T positions   D head width

Ways to attend over packed rows, all equal to one float64 reference (tests/model/test_attention.py).

Every one takes query (B, H, T, D), key and value (B, G, T, D) with H a multiple of G, and gives (B, T, H, D).

    window  keys that a position sees, itself included, as transformers counts; None for all
    cap     scores become cap * tanh(score / cap) before the softmax (Gemma 2); None for plain scores
"""

import importlib.metadata
from functools import cache, cached_property
from itertools import accumulate, pairwise
from typing import Literal

import torch
import torch.nn.functional as F

from unimm.config.check import ConfigError
from unimm.model.cache import RowCache


def causal_mask(queries: int, keys: int, window: int | None, device) -> torch.Tensor:
    """bool (queries, keys): which keys the last `queries` positions of `keys` see."""
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def repeated(key, value, heads: int):
    """Keys and values once for every query head."""
    groups = heads // key.shape[1]
    return (key, value) if groups == 1 else (key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1))


def under_mask(query, key, value, mask, scale, cap=None):
    """(B, H, t, D) under a bool mask that broadcasts to (B, H, t, T); heads are equal in number."""
    if cap is None and not _plain_wins(query):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-1, -2)
    if cap is not None:
        scores = (scores / cap).tanh() * cap
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ value


def _plain_wins(query) -> bool:
    """In short bfloat16 on a CPU the fused kernel is slow, forward and backward: 5.3 times plain products at 40
    positions, 3.2 at 128, 0.94 at 512."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.shape[2] < 512


def by_mask(query, key, value, documents, scale, window, cap):
    key, value = repeated(key, value, query.shape[1])
    return under_mask(query, key, value, documents.mask(window), scale, cap).transpose(1, 2).contiguous()


def by_document(query, key, value, documents, scale, window, cap):
    """One call a document, or one a window's length of it: the cost of a token does not grow with the row."""
    rows = query.shape[2]
    key, value = repeated(key, value, query.shape[1])
    pieces = []
    for start, stop in pairwise(documents.edges):
        row, first = divmod(start, rows)
        q, k, v = (x[row:row + 1, :, first:first + stop - start] for x in (query, key, value))
        step = stop - start if window is None else window
        for at in range(0, stop - start, step):
            low = max(0, at - step + 1)
            pieces.append(_piece(q[:, :, at:at + step], k[:, :, low:at + step], v[:, :, low:at + step],
                                 scale, window, cap)[0].transpose(0, 1))
    return torch.cat(pieces).unflatten(0, (len(query), rows))


def _piece(query, key, value, scale, window, cap):
    alone = query.shape[2] == key.shape[2]  # a document's beginning: inside it no window cuts anything off
    if cap is None and alone and not _plain_wins(query):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    mask = causal_mask(query.shape[2], key.shape[2], window, query.device)
    return under_mask(query, key, value, mask, scale, cap)


def _end_to_end(attention, query, key, value, documents):
    """`attention` over all rows as one of (B * T, heads, D), which it is told to cut where documents begin."""
    starts, longest = documents.starts
    flat = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    return attention(*flat, starts, longest).unflatten(0, (len(query), query.shape[2]))


def by_varlen(query, key, value, documents, scale, window, cap):
    """Flash attention as torch has it built in: CUDA, 16-bit, no soft cap."""
    from torch.nn.attention.varlen import varlen_attn

    if cap is not None:
        raise ConfigError("torch's varlen attention has no soft cap; let the kernel be chosen")
    # torch 2.11 has no grouped heads yet; from 2.12 on they must be asked for. Repeated ones are right in both.
    key, value = repeated(key, value, query.shape[1])
    sides = (-1 if window is None else window - 1, 0)
    return _end_to_end(lambda q, k, v, starts, longest: varlen_attn(
        q, k, v, starts, starts, longest, longest, scale=scale, window_size=sides), query, key, value, documents)


def by_flash2(query, key, value, documents, scale, window, cap):
    """The package flash-attn (2.6 or later for `softcap`): CUDA, 16-bit."""
    from flash_attn import flash_attn_varlen_func

    sides = (-1, -1) if window is None else (window - 1, 0)
    return _end_to_end(lambda q, k, v, starts, longest: flash_attn_varlen_func(
        q, k, v, starts, starts, longest, longest, softmax_scale=scale, causal=True, window_size=sides,
        softcap=cap or 0.0), query, key, value, documents)


def by_flash4(query, key, value, documents, scale, window, cap):
    """The package flash-attn-4: Hopper and Blackwell, 16-bit. Gives the output and a log-sum-exp."""
    from flash_attn.cute import flash_attn_varlen_func

    sides = (None, None) if window is None else (window - 1, 0)
    return _end_to_end(lambda q, k, v, starts, longest: flash_attn_varlen_func(
        q, k, v, cu_seqlens_q=starts, cu_seqlens_k=starts, max_seqlen_q=longest, max_seqlen_k=longest,
        softmax_scale=scale, causal=True, window_size=sides, softcap=cap or 0.0)[0], query, key, value, documents)


@cache
def _flex():
    from torch.nn.attention.flex_attention import flex_attention

    # Uncompiled it writes out every score, which only a test on a CPU can bear.
    return torch.compile(flex_attention, dynamic=False) if torch.cuda.is_available() else flex_attention


def by_flex(query, key, value, documents, scale, window, cap):
    """torch's flex attention: compiled on CUDA, in any precision; on a CPU only its forward exists."""
    def capped(score, batch, head, q, k):
        return (score / cap).tanh() * cap

    out = _flex()(query, key, value, score_mod=capped if cap is not None else None,
                  block_mask=documents.blocks(window), scale=scale, enable_gqa=query.shape[1] != key.shape[1])
    return out.transpose(1, 2).contiguous()


KERNELS = {"flash-attn 4": by_flash4, "flash-attn 2": by_flash2, "varlen (torch)": by_varlen, "flex (torch)": by_flex,
           "mask": by_mask, "documents": by_document}


def over_cache(query, key, value, seen, scale, cap):
    """The positions that are read over all that a cache holds: query (n, H, t, D), key and value (n, G, end, D).

    `seen` as `RowCache.seen` says it. Keys of the past are not repeated for their heads: queries of one key head are
    rows of one product.
    """
    low, mask = seen
    key, value = key[:, :, low:], value[:, :, low:]
    (n, heads, t, width), groups = query.shape, key.shape[1]
    if heads == groups or t == key.shape[2] > 1:  # nothing but what is read now
        key, value = repeated(key, value, heads)
        return under_mask(query, key, value, mask, scale, cap).transpose(1, 2).contiguous()
    if mask is not None and t > 1:
        mask = mask.repeat(1, 1, heads // groups, 1)
    out = under_mask(query.reshape(n, groups, -1, width), key, value, mask, scale, cap)
    return out.reshape(n, heads, t, -1).transpose(1, 2)


NAME = "unimm_packed"

Kernel = Literal["flash-attn 4", "flash-attn 2", "varlen (torch)", "flex (torch)", "mask", "documents"]

LONGEST_MASKED_ROW = 256
"""Up to here rows of documents of 40 under one mask beat a loop over them on a CPU, 1.2 times in float32 and 3 times in
bfloat16 (tools/bench/attention.py); at 512 they lose."""


class Documents:
    """Which document each position belongs to, in the form that a kernel asks for, made once for all layers.

    ids      int64 (B, T), 0 for padding, which counts as a document of its own
    lengths  of the documents of every row, where the host knows them: else they are read back from the device
    kernel   takes the choice away, for tests and measurements
    """

    def __init__(self, ids: torch.Tensor, lengths: tuple[tuple[int, ...], ...] = (), kernel: Kernel | None = None):
        self.ids, self.kernel = ids, kernel
        self.lengths = lengths if len(lengths) == len(ids) else ()
        self._made = {}

    @cached_property
    def edges(self) -> list[int]:
        """Where documents begin, counted over all rows laid end to end, and the end of the last."""
        b, t = self.ids.shape
        if self.lengths:
            ends = (at * t + end for at, row in enumerate(self.lengths) for end in (*accumulate(row), t))
            return sorted({0, *ends})
        changes = torch.ones(b, t, dtype=torch.bool)
        host = self.ids.cpu()
        changes[:, 1:] = host[:, 1:] != host[:, :-1]
        return [*changes.flatten().nonzero()[:, 0].tolist(), b * t]

    @cached_property
    def starts(self) -> tuple[torch.Tensor, int]:
        """`edges` as int32 on the device, and the longest document's length."""
        starts = torch.tensor(self.edges, dtype=torch.int32)
        longest = int(starts.diff().max())
        if self.ids.is_cuda:
            starts = starts.pin_memory()
        return starts.to(self.ids.device, non_blocking=True), longest

    def mask(self, window: int | None) -> torch.Tensor:
        """bool (B, 1, T, T). Padding sees padding: a softmax over nothing would be NaN."""
        if ("mask", window) not in self._made:
            t = self.ids.shape[1]
            same = self.ids[:, :, None] == self.ids[:, None, :]
            self._made["mask", window] = (same & causal_mask(t, t, window, self.ids.device))[:, None]
        return self._made["mask", window]

    def blocks(self, window: int | None):
        """The same for flex attention, which skips blocks that hold nothing."""
        if ("blocks", window) not in self._made:
            from torch.nn.attention.flex_attention import create_block_mask

            ids, (b, t) = self.ids, self.ids.shape

            def sees(row, head, q, k):
                inside = (q >= k) & (ids[row, q] == ids[row, k])
                return inside if window is None else inside & (q - k < window)

            self._made["blocks", window] = create_block_mask(sees, b, None, t, t, device=ids.device)
        return self._made["blocks", window]


@cache
def available(device: torch.device) -> frozenset[str]:
    """Which kernels that need a package or a GPU can run on this device."""
    if device.type != "cuda":
        return frozenset()
    packages = {"flash-attn 2": "flash-attn", "flash-attn 4": "flash-attn-4"}
    found = {kernel for kernel, package in packages.items() if [*importlib.metadata.distributions(name=package)]}
    if torch.cuda.get_device_capability(device) < (9, 0):
        found.discard("flash-attn 4")
    return frozenset(found | {"varlen (torch)", "flex (torch)"})


def choose(found: frozenset[str], dtype: torch.dtype, row: int, width: int, capped: bool) -> Kernel:
    """The kernel for rows of so many positions and heads of so many features, given those `available`."""
    if dtype in (torch.bfloat16, torch.float16) and width % 8 == 0 and width <= 256:
        if "flash-attn 4" in found and width <= 128:
            return "flash-attn 4"
        if "flash-attn 2" in found:
            return "flash-attn 2"
        if "varlen (torch)" in found and not capped:
            return "varlen (torch)"
    if row <= LONGEST_MASKED_ROW:
        return "mask"
    return "flex (torch)" if "flex (torch)" in found and width >= 16 else "documents"


def head_width(config) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def kernel_name(config, device: torch.device, precision: Literal["fp32", "bf16"], row: int) -> Kernel:
    """What `attend` will choose for a transformers model of this configuration, to be told before a run."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    capped = bool(getattr(config, "attn_logit_softcapping", None))
    return choose(available(device), dtype, row, head_width(config), capped)


def attend(module, query, key, value, attention_mask, scaling=None, documents: Documents | RowCache | None = None,
           sliding_window: int | None = None, softcap: float | None = None, dropout: float = 0.0, s_aux=None, **_):
    """Softmax attention (B, H, T, D) -> (B, T, H, D), as transformers calls it.

    The rows are packed `documents`, or go on behind what a cache holds; with None, behind the keys that are more.
    """
    if dropout or s_aux is not None:
        what = "dropout" if dropout else "attention sinks"
        raise ConfigError(f"{type(module).__name__} asks for {what}, which attention over packed rows doesn't apply; "
                          "set attention_dropout to 0 in the backbone's config.json, or take one without sinks")
    device = query.device
    if torch.is_autocast_enabled(device.type):
        # Rotary embeddings leave float32 under autocast, which no flash kernel takes.
        query, key, value = (x.to(torch.get_autocast_dtype(device.type)) for x in (query, key, value))
    if isinstance(documents, RowCache):
        return over_cache(query, key, value, documents.seen(sliding_window), scaling, softcap), None
    if documents is None:
        mask = causal_mask(query.shape[2], key.shape[2], sliding_window, device)[None, None]
        return over_cache(query, key, value, (0, mask), scaling, softcap), None
    t, width = query.shape[2:]
    window = None if sliding_window is None or sliding_window >= t else sliding_window
    found = available(device) if width == value.shape[3] else frozenset()
    kernel = documents.kernel or choose(found, query.dtype, t, width, softcap is not None)
    return KERNELS[kernel](query, key, value, documents, scaling, window, softcap), None


def use_packed_attention(backbone, how=attend) -> None:
    """Let a transformers model attend through `attend` or a wrapper of it.

    Raises ConfigError where its attention can't be expressed.
    """
    from transformers import AttentionInterface

    config = backbone.config
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    both_ways = getattr(config, "use_bidirectional_attention", False) or not getattr(config, "is_causal", True)
    sinks = any(name.endswith(("sinks", "sink")) for name, _ in backbone.named_parameters())
    reasons = {
        f"it has layers of {', '.join(sorted(kinds))}, through which packed documents would see each other": kinds,
        "it attends in both directions": both_ways, "it has attention sinks": sinks,
        "it does not attend through transformers' attention interface": not backbone._can_set_attn_implementation()}
    if reason := next((reason for reason, holds in reasons.items() if holds), None):
        raise ConfigError(f"{config.model_type} can't be trained on packed rows: {reason}; take another backbone")
    AttentionInterface.register(NAME, how)
    backbone.set_attn_implementation(NAME)
