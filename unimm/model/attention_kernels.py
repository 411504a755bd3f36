"""Ways to attend over packed rows, all equal to one float64 reference (tests/model/test_attention.py).

Every one takes query (B, H, T, D), key and value (B, G, T, D) with H a multiple of G, and gives (B, T, H, D).

    window  keys that a position sees, itself included, as transformers counts; None for all
    cap     scores become cap * tanh(score / cap) before the softmax (Gemma 2); None for plain scores
"""

from functools import cache
from itertools import pairwise

import torch
import torch.nn.functional as F


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


def _flat(query, key, value):
    """(B * T, heads, D) each: how the kernels for sequences of unequal length take them."""
    return (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))


def by_varlen(query, key, value, documents, scale, window, cap):
    """Flash attention as torch has it built in: CUDA, 16-bit, no soft cap."""
    from torch.nn.attention.varlen import varlen_attn

    starts, longest = documents.starts
    # torch 2.11 has no grouped heads yet; from 2.12 on they must be asked for. Repeated ones are right in both.
    key, value = repeated(key, value, query.shape[1])
    q, k, v = _flat(query, key, value)
    left = -1 if window is None else window - 1
    out = varlen_attn(q, k, v, starts, starts, longest, longest, scale=scale, window_size=(left, 0))
    return out.unflatten(0, (len(query), query.shape[2]))


def by_flash2(query, key, value, documents, scale, window, cap):
    """The package flash-attn (2.6 or later for `softcap`): CUDA, 16-bit."""
    from flash_attn import flash_attn_varlen_func

    starts, longest = documents.starts
    left = -1 if window is None else window - 1
    out = flash_attn_varlen_func(*_flat(query, key, value), starts, starts, longest, longest, softmax_scale=scale,
                                 causal=True, window_size=(left, -1 if window is None else 0), softcap=cap or 0.0)
    return out.unflatten(0, (len(query), query.shape[2]))


def by_flash4(query, key, value, documents, scale, window, cap):
    """The package flash-attn-4: Hopper and Blackwell, 16-bit. Gives the output and a log-sum-exp."""
    from flash_attn.cute import flash_attn_varlen_func

    starts, longest = documents.starts
    sides = (None, None) if window is None else (window - 1, 0)
    out, _ = flash_attn_varlen_func(
        *_flat(query, key, value), cu_seqlens_q=starts, cu_seqlens_k=starts, max_seqlen_q=longest,
        max_seqlen_k=longest, softmax_scale=scale, causal=True, window_size=sides, softcap=cap or 0.0)
    return out.unflatten(0, (len(query), query.shape[2]))


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
