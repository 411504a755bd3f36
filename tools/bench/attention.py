"""Attention over packed rows, forward and backward: ours against transformers' SDPA under its dense packed mask.

Masks and edges are made before the clock starts, on both sides: they serve all layers of a model.
`python -m tools.bench.attention` decides `unimm.model.attention.LONGEST_MASKED_ROW` too, by the last rows.
"""

from collections.abc import Iterable
from functools import partial
from types import SimpleNamespace

import torch
from transformers import LlamaConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_causal_mask

from tools.bench.rows import Row, equal, faster, interleaved, main, within
from unimm.model.attention import Documents, Kernel, attend, choose

HEADS, WIDTH = 2, 64
KERNELS = {"mask": "one mask", "documents": "a loop over documents"}


def inputs(rows: int, row: int, dtype=torch.float32, heads=HEADS, width=WIDTH) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(rows, heads, row, width, dtype=dtype, requires_grad=True) for _ in range(3)]


def documents(rows: int, row: int, length: int, kernel: Kernel | None = None) -> Documents:
    counts = [length] * (row // length) + ([row % length] if row % length else [])
    ids = torch.repeat_interleave(torch.arange(1, len(counts) + 1), torch.tensor(counts)).expand(rows, row)
    made = Documents(ids, (tuple(counts),) * rows, kernel)
    made.mask(None), made.edges
    return made


def both_ways(run, given: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Output and gradients."""
    out, _ = run(None, *given, None)
    return out.detach(), *torch.autograd.grad(out.square().sum(), given)


def dense(given: Documents):
    """transformers' SDPA under the mask that it makes of restarting positions: float or bool (1, 1, T, T)."""
    t = given.ids.shape[1]
    position = torch.cat([torch.arange(n) for n in given.lengths[0]])[None]
    config = LlamaConfig(hidden_size=HEADS * WIDTH, num_attention_heads=HEADS)
    config._attn_implementation = "sdpa"
    mask = create_causal_mask(config, torch.zeros(1, t, 1), None, None, position)
    module = SimpleNamespace(num_key_value_groups=1, is_causal=True)
    return lambda _, q, k, v, __: sdpa_attention_forward(module, q, k, v, mask, scaling=WIDTH**-0.5)


def rows(toy: bool = False) -> Iterable[Row]:
    for row, wanted in ((512, 0.1), (1024, 0.1)) if toy else ((2048, 2.0), (8192, 4.0)):
        given, packed = inputs(1, row), documents(1, row, 256)
        ours = partial(both_ways, partial(attend, documents=packed, scaling=WIDTH**-0.5), given)
        theirs = partial(both_ways, dense(packed), given)
        for a, b in zip(ours(), theirs(), strict=True):
            equal(f"packed attention at {row}", a, b, 1e-4)
        yield faster(f"packed attention, a row of {row:,} in documents of 256", "transformers' dense packed mask",
                     *interleaved(ours, theirs, 1 if toy else 5), "CPU s", wanted)
    short, long = (512, 1024) if toy else (1024, 8192)
    sides = []
    for row in (long, short):
        sides.append(partial(both_ways, partial(attend, documents=documents(long // row, row, 256)),
                             inputs(long // row, row)))
    yield within(f"packed attention, {long:,} tokens in rows of {long:,}", f"ours in rows of {short:,}",
                 *interleaved(*sides, 1 if toy else 15), "CPU s", 300 if toy else 10)
    for dtype in (torch.float32, torch.bfloat16):
        for row in (128,) if toy else (128, 256):
            given = inputs(2048 // row, row, dtype, 4, 32)
            chosen = choose(frozenset(), dtype, row, 32, False)
            names: list[Kernel] = [chosen, "documents" if chosen == "mask" else "mask"]
            sides = [partial(both_ways, partial(attend, documents=documents(2048 // row, row, 40, kernel)), given)
                     for kernel in names]
            for a, b in zip(*(side() for side in sides), strict=True):
                equal("mask and loop", a.float(), b.float(), 1e-4 if dtype == torch.float32 else 0.3)
            yield faster(f"{KERNELS[names[0]]}, rows of {row} in documents of 40, {str(dtype)[6:]}",
                         f"ours, {KERNELS[names[1]]}", *interleaved(*sides, 1 if toy else 9), "CPU s",
                         0.1 if toy else 1.0)


if __name__ == "__main__":
    main(rows)
