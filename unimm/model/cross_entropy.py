"""Cross-entropy at the supervised positions only, in chunks: full logits never exist."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

CHUNK = 2048
"""Positions whose logits exist at one time: 2048 x 164,000 ids x 4 bytes = 1.3 GB at Emu3's vocabulary."""


def token_losses(hidden: torch.Tensor, head: Callable, targets: torch.Tensor, chunk: int = CHUNK) -> torch.Tensor:
    """Cross-entropy of each target, float32 (N,), from hidden (N, width), never holding more logits than a chunk's.

    The caller selects the supervised positions first: an unlearned position costs nothing here.
    """
    def part(h, t):
        return F.cross_entropy(head(h).float(), t, reduction="none")

    if len(hidden) <= chunk:
        return part(hidden, targets)
    pieces = [checkpoint(part, h, t, use_reentrant=False) for h, t in zip(hidden.split(chunk), targets.split(chunk))]
    return torch.cat(pieces)
