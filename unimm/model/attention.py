"""Attention over packed rows: every document sees itself alone.

Supplied to any transformers model through its attention interface, so no model code is copied.

    B rows   H heads   T positions   D head width
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

NAME = "unimm_packed"

LONGEST_MASKED_ROW = 512
"""Up to here bfloat16 rows under one mask beat a loop over documents on a CPU (tools/bench/attention.py)."""


@dataclass(frozen=True)
class Documents:
    """Which document each position belongs to: `ids` int64 (B, T), 0 for padding; `mask` or `spans` derive from it.

    mask   bool (B, 1, T, T), or None for long rows
    spans  (row, start, stop) of every document, empty where the mask serves
    """

    mask: torch.Tensor | None
    spans: tuple[tuple[int, int, int], ...]


def documents_of(ids: torch.Tensor) -> Documents:
    """What `attend` needs to know of packed rows, from their document numbers (B, T)."""
    b, t = ids.shape
    if t <= LONGEST_MASKED_ROW:
        same = ids[:, :, None] == ids[:, None, :]  # padding sees padding: a softmax over nothing would be NaN
        return Documents((same & torch.ones(t, t, dtype=torch.bool, device=ids.device).tril())[:, None], ())
    host = ids.cpu()
    changes = torch.ones(b, t + 1, dtype=torch.bool)
    changes[:, 1:t] = host[:, 1:] != host[:, :-1]
    spans = []
    for row in range(b):
        edges = changes[row].nonzero()[:, 0].tolist()
        spans += [(row, start, stop) for start, stop in zip(edges, edges[1:])]
    return Documents(None, tuple(spans))


def attend(module, query, key, value, attention_mask, scaling=None, documents: Documents | None = None, **_):
    """Softmax attention (B, H, T, D) -> (B, T, H, D), as transformers calls it.

    With `documents` the rows are packed; without, `attention_mask` is bool (B, 1, T, T) or None for causal.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    mask = documents.mask if documents is not None else attention_mask
    if documents is not None and documents.spans:
        out = _by_document(query, key, value, documents.spans, scaling)
    elif mask is not None and query.device.type == "cpu" and query.dtype == torch.bfloat16:
        out = _by_hand(query, key, value, mask, scaling)
    else:
        causal = mask is None and query.shape[2] > 1
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


def _by_hand(query, key, value, mask, scaling):
    """In bfloat16 on a CPU the fused kernel is slow: 3.3 times this at rows of 160, forward and backward."""
    scores = (query * (query.shape[-1] ** -0.5 if scaling is None else scaling)) @ key.transpose(-1, -2)
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) @ value


def _by_document(query, key, value, spans, scaling):
    rows: dict[int, list[torch.Tensor]] = {}
    for row, start, stop in spans:
        q, k, v = (x[row:row + 1, :, start:stop] for x in (query, key, value))
        rows.setdefault(row, []).append(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling))
    return torch.cat([torch.cat(rows[row], 2) for row in sorted(rows)])


def use_packed_attention(backbone, how=attend) -> None:
    """Let a transformers model attend through `attend`, or a wrapper of it. Refuses models whose attention it can't express."""
    from transformers import AttentionInterface

    window = getattr(backbone.config, "sliding_window", None)
    if window is not None and getattr(backbone.config, "use_sliding_window", True):
        raise ValueError(f"{backbone.config.model_type}: sliding-window attention ({window}) is not supported yet")
    if getattr(backbone.config, "attn_logit_softcapping", None):
        raise ValueError(f"{backbone.config.model_type}: soft-capped attention is not supported yet")
    AttentionInterface.register(NAME, how)
    backbone.set_attn_implementation(NAME)
