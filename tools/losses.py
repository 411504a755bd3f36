"""Other ways to the loss of a large vocabulary, with the arguments of `unimm.model.cross_entropy.weighted_loss`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unimm.model.cross_entropy import chunk_of, soft_cap


def by_torch(hidden: Tensor, head: nn.Linear, targets: Tensor, weights: Tensor, chunk: int | None = None):
    """F.linear_cross_entropy of torch 2.13, which has neither z-loss nor soft cap; bfloat16 losses of bfloat16."""
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)
    nll = F.linear_cross_entropy(hidden, head.weight, targets, linear_bias=head.bias, reduction="none",
                                 options=options)
    return (nll.float() * weights).sum(), nll.detach().float()


def by_liger(hidden: Tensor, head: nn.Linear, targets: Tensor, weights: Tensor, z_loss: float = 0.0,
             cap: float | None = None):
    """Liger's kernel, of triton on CUDA."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    # Gradients of reduction "none" are right from 0.8.5 on: before, the weight's ignored what each position weighs.
    out = liger_fused_linear_cross_entropy(hidden, head.weight, targets, bias=head.bias, lse_square_scale=z_loss,
                                           softcap=cap, reduction="none", return_z_loss=True,
                                           accum_dtype=torch.float32)
    return (out.loss * weights).sum(), (out.loss - out.z_loss).detach()


def by_chunks(hidden: Tensor, head: nn.Module, targets: Tensor, weights: Tensor, z_loss: float = 0.0,
              cap: float | None = None, chunk: int | None = None):
    """Through the head as a module, with a checkpoint a chunk."""
    def part(h, t, w):
        logits = soft_cap(head(h).float(), cap)
        log_sum = logits.logsumexp(1)
        nll = log_sum - logits.gather(1, t[:, None])[:, 0]
        return (w * (nll + z_loss * log_sum**2)).sum(), nll.detach()

    chunk = chunk or chunk_of(head.out_features, hidden.device.type)
    pieces = [checkpoint(part, *each, use_reentrant=False)
              for each in zip(hidden.split(chunk), targets.split(chunk), weights.split(chunk))]
    totals, nll = zip(*pieces)
    return torch.stack(totals).sum(), torch.cat(nll)
