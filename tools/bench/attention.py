"""Packed attention, forward and backward: plain products under a mask, torch's fused kernel under the same mask, and
a loop over documents, as ratios within one run. Decides `unimm.model.attention.LONGEST_MASKED_ROW`.

    python tools/bench/attention.py            one thread; best of 15, the three interleaved
"""

import time

import torch
import torch.nn.functional as F

from unimm.model.attention import _by_document, _by_hand

HEADS, WIDTH, TOKENS, DOCUMENT = 4, 32, 2048, 40


def fused(query, key, value, mask, scaling):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)


def seconds(run, inputs) -> float:
    began = time.process_time()
    run(*inputs).sum().backward()
    return time.process_time() - began


def main() -> None:
    torch.set_num_threads(1)
    print(f"{TOKENS} tokens in documents of {DOCUMENT}, {HEADS} heads of {WIDTH}; milliseconds and ratios")
    for dtype in (torch.float32, torch.bfloat16):
        print(f"{str(dtype):<16}{'products':>10}{'fused':>10}{'loop':>10}{'fused':>9}{'loop':>8}")
        compare(dtype)


def compare(dtype: torch.dtype) -> None:
    for row in (64, 128, 160, 256, 512):
        torch.manual_seed(0)
        shape = (TOKENS // row, HEADS, row, WIDTH)
        inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3)]
        numbers = (torch.arange(row) // DOCUMENT + 1).expand(TOKENS // row, row)
        same = (numbers[:, :, None] == numbers[:, None, :]) & torch.ones(row, row, dtype=torch.bool).tril()
        edges = [*range(0, row, DOCUMENT), row]
        spans = tuple((b, i, j) for b in range(TOKENS // row) for i, j in zip(edges, edges[1:]))
        ways = ((_by_hand, same[:, None]), (fused, same[:, None]), (_by_document, spans))
        best = [min(times) for times in zip(*([seconds(run, (*inputs, how, WIDTH**-0.5)) for run, how in ways]
                                              for _ in range(15)))]
        print(f"row of {row:<9}" + "".join(f"{t * 1e3:>10.1f}" for t in best)
              + f"{best[1] / best[0]:>8.2f}x{best[2] / best[0]:>7.2f}x")


if __name__ == "__main__":
    main()
