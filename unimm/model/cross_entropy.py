"""Weighted cross-entropy at the supervised positions only, in chunks: full logits never exist.

    N positions   V ids   W width        x = head(hidden), capped where the model does so
    total = sum of weight * (nll + z * logsumexp(x) ** 2)        nll = logsumexp(x) - x[target]
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimm.config.check import ConfigError

CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 1 << 30}
"""Float32 logits that exist at one time. 1 GiB is 1,600 positions at 168,000 ids: large products, few of them."""


def weighted_loss(hidden: Tensor, head: nn.Module, targets: Tensor, weights: Tensor, *, z_loss: float = 0.0,
                  cap: float | None = None, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """The total, a scalar with a graph, and nll, float32 (N,) without one.

    hidden (N, W) and targets int64 (N,) hold the supervised positions alone, so an unlearned one costs nothing and
    a z-loss can't reach it; weights float32 (N,). Under autocast the products are in its precision, all else in
    float32. Under ZeRO-3 call it through `Loss`.

    One pass, gradients beside the loss: 3 products where every other way needs 4, having to make its logits again.
    Against full logits 0.75 of the CPU time, F.linear_cross_entropy 1.04, checkpointed chunks 1.2
    (tools/bench/loss.py); `tools.losses` has the others for the comparison.

    Raises ConfigError for a head that is more than its weight and bias.
    """
    if type(head) is not nn.Linear:
        raise ConfigError(f"the head is a {type(head).__name__}; only a plain nn.Linear is trained, for its gradients "
                          "are made from its weight: take another backbone")
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else head.weight.dtype
    bias = None if head.bias is None else head.bias.to(dtype)
    return _OnePass.apply(hidden.to(dtype), head.weight.to(dtype), bias, targets, weights, z_loss, cap,
                          chunk or chunk_of(head.out_features, kind))


def chunk_of(ids: int, device: str) -> int:
    """The most positions whose logits over so many ids exist at one time."""
    return max(64, CHUNK_BYTES.get(device, 32 << 20) // (4 * ids))


class Loss(nn.Module):
    """`weighted_loss` as a module, so that ZeRO-3 gathers the head's weight, which belongs to another one.

    It does so where a module's forward reads it, and again where gradients come to that module's output tensors.
    """

    def forward(self, *values, **more) -> tuple[Tensor, Tensor]:
        return weighted_loss(*values, **more)


def soft_cap(logits: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(logits / cap); the logits where a model has no cap."""
    return logits if cap is None else (logits / cap).tanh() * cap


class _OnePass(torch.autograd.Function):
    """Both gradients are known once the logits are, for the weights of the positions are: nothing is made twice."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, weights, z_loss, cap, chunk):
        wanted = ctx.needs_input_grad
        d_hidden = torch.empty_like(hidden) if wanted[0] else None
        # Summed over chunks in float32, whatever the products are in.
        d_weight, d_bias = (torch.zeros_like(x, dtype=torch.float32) if want else None
                            for x, want in ((weight, wanted[1]), (bias, wanted[2])))
        total, nll = hidden.new_zeros((), dtype=torch.float32), hidden.new_empty(len(hidden), dtype=torch.float32)
        for at in range(0, len(hidden), chunk):
            part = slice(at, at + chunk)
            d_logits, nll[part], z = _logit_gradient(F.linear(hidden[part], weight, bias).float(), targets[part],
                                                     weights[part], z_loss, cap)
            total += (nll[part] * weights[part]).sum() + z
            d_logits = d_logits.to(hidden.dtype)
            if wanted[0]:
                torch.mm(d_logits, weight, out=d_hidden[part])
            if wanted[1]:
                d_weight.addmm_(d_logits.T, hidden[part]) if hidden.dtype == torch.float32 else d_weight.add_(
                    d_logits.T @ hidden[part])
            if wanted[2]:
                d_bias += d_logits.sum(0, dtype=torch.float32)
            del d_logits  # or it would be held while the next chunk's are made: twice the memory
        ctx.gradients = [(d, x.dtype) for d, x in ((d_hidden, hidden), (d_weight, weight), (d_bias, bias))
                         if x is not None]
        ctx.mark_non_differentiable(nll)
        return total, nll

    @staticmethod
    def backward(ctx, scale, _):
        if ctx.gradients is None:
            raise RuntimeError("the loss was differentiated twice; its gradients are given away the first time")
        given = [d if d is None else d.mul_(scale).to(dtype) for d, dtype in ctx.gradients]
        ctx.gradients = None
        return (*given, None)[:3] + (None,) * 5


def _logit_gradient(logits: Tensor, targets: Tensor, weights: Tensor, z_loss: float, cap: float | None):
    """From float32 logits (n, V), overwritten: the total's gradient to them, nll (n,), the z-loss's share."""
    capped = None
    if cap is not None:
        logits = logits.div_(cap).tanh_()
        capped = logits.clone()
        logits.mul_(cap)
    highest = logits.amax(1, keepdim=True) if len(logits) else logits[:, :1]
    of_target = logits.gather(1, targets[:, None])
    sums = logits.sub_(highest).exp_().sum(1, keepdim=True)
    log_sum = sums.log() + highest
    nll, weights = (log_sum - of_target)[:, 0], weights[:, None]
    logits.mul_(weights * (1 + 2 * z_loss * log_sum) / sums)
    logits.scatter_add_(1, targets[:, None], -weights.to(logits.dtype))
    if capped is not None:
        logits.mul_(capped.square_().neg_().add_(1))
    return logits, nll, z_loss * (weights * log_sum**2).sum()
