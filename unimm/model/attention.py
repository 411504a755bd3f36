"""Attention over packed rows: every document sees itself alone.

Supplied to any transformers model through its attention interface, so no model code is copied. Which kernel
does it is chosen by what there is: device, dtype, installed packages, row length.

    B rows   H heads   T positions   D head width
"""

import importlib.metadata
from functools import cache, cached_property
from itertools import accumulate
from typing import Literal, assert_never

import torch

from unimm.config.check import ConfigError
from unimm.model import attention_kernels as kernels
from unimm.model.cache import RowCache

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
            self._made["mask", window] = (same & kernels.causal_mask(t, t, window, self.ids.device))[:, None]
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


def kernel_name(config, device: torch.device, precision: Literal["fp32", "bf16"], row: int) -> Kernel:
    """What `attend` will choose for a transformers model of this configuration, to be told before a run."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return choose(available(device), dtype, row, width, bool(getattr(config, "attn_logit_softcapping", None)))


def attend(module, query, key, value, attention_mask, scaling=None, documents: Documents | RowCache | None = None,
           sliding_window: int | None = None, softcap: float | None = None, dropout: float = 0.0, s_aux=None, **_):
    """Softmax attention (B, H, T, D) -> (B, T, H, D), as transformers calls it.

    The rows are packed `documents`, or go on behind what a cache holds; with None, behind the keys that are more.
    """
    if dropout or s_aux is not None:
        what = "dropout" if dropout else "attention sinks"
        raise ConfigError(f"{type(module).__name__} asks for {what}, which attention over packed rows doesn't apply"
                          + ("; set attention_dropout to 0 in the backbone's config.json" if dropout else ""))
    device = query.device
    if torch.is_autocast_enabled(device.type):
        # Rotary embeddings leave float32 under autocast, which no flash kernel takes.
        query, key, value = (x.to(torch.get_autocast_dtype(device.type)) for x in (query, key, value))
    if isinstance(documents, RowCache):
        return kernels.over_cache(query, key, value, documents.seen(sliding_window), scaling, softcap), None
    if documents is None:
        mask = kernels.causal_mask(query.shape[2], key.shape[2], sliding_window, device)[None, None]
        return kernels.over_cache(query, key, value, (0, mask), scaling, softcap), None
    t, width = query.shape[2:]
    window = None if sliding_window is None or sliding_window >= t else sliding_window
    found = available(device) if width == value.shape[3] else frozenset()
    kernel = documents.kernel or choose(found, query.dtype, t, width, softcap is not None)
    match kernel:
        case "flash-attn 4":
            run = kernels.by_flash4
        case "flash-attn 2":
            run = kernels.by_flash2
        case "varlen (torch)":
            run = kernels.by_varlen
        case "flex (torch)":
            run = kernels.by_flex
        case "mask":
            run = kernels.by_mask
        case "documents":
            run = kernels.by_document
        case _:
            assert_never(kernel)
    if kernel == "varlen (torch)" and softcap is not None:
        raise ConfigError("torch's varlen attention has no soft cap; let the kernel be chosen")
    return run(query, key, value, documents, scaling, window, softcap), None


def use_packed_attention(backbone, how=attend) -> None:
    """Let a transformers model attend through `attend` or a wrapper of it.

    Raises ConfigError where its attention can't be expressed.
    """
    from transformers import AttentionInterface

    config = backbone.config
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    reason = None
    if kinds:
        reason = f"it has layers of {', '.join(sorted(kinds))}, through which packed documents would see each other"
    elif getattr(config, "use_bidirectional_attention", False) or not getattr(config, "is_causal", True):
        reason = "it attends in both directions"
    elif any(name.endswith(("sinks", "sink")) for name, _ in backbone.named_parameters()):
        reason = "it has attention sinks"
    elif not backbone._can_set_attn_implementation():
        reason = "it does not attend through transformers' attention interface"
    if reason:
        raise ConfigError(f"{config.model_type} can't be trained on packed rows: {reason}; take another backbone")
    AttentionInterface.register(NAME, how)
    backbone.set_attn_implementation(NAME)
