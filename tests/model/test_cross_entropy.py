from functools import partial

import pytest
import torch
from torch import nn

from tools.losses import by_chunks, by_liger, by_torch
from unimm.config.check import ConfigError
from unimm.model.cross_entropy import weighted_loss

WAYS = {"one pass": weighted_loss, "chunks": by_chunks}
OTHERS = {"torch": by_torch, "liger": by_liger}


class Wrapped(nn.Module):
    """A head that is no plain Linear, as adapters make it: its weight alone does not say what it computes."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.out_features = inner, inner.out_features

    def forward(self, hidden):
        return self.inner(hidden) + hidden[:, :1]


def setting(bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    hidden, head = torch.randn(37, 8, dtype=dtype, requires_grad=True), nn.Linear(8, 21, bias=bias, dtype=dtype)
    return hidden, head, torch.randint(21, (37,)), torch.rand(37)


def exact(hidden, head, targets, weights, z_loss=0.0, cap=None):
    """Float64 from the definition: total, nll, and the gradients of hidden states, weight and bias."""
    inputs = [x.detach().double().requires_grad_() for x in (hidden, *head.parameters())]
    logits = nn.functional.linear(*inputs)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    log_sum = logits.exp().sum(1).log()
    nll = log_sum - logits[torch.arange(len(targets)), targets]
    total = (weights.double() * (nll + z_loss * log_sum**2)).sum()
    return total.detach(), nll.detach(), torch.autograd.grad(total, inputs)


@pytest.mark.parametrize("chunk", [1, 8, 37, 100])
@pytest.mark.parametrize("more", [{}, {"z_loss": 0.1}, {"cap": 1.5}, {"z_loss": 0.1, "cap": 1.5}], ids=str)
@pytest.mark.parametrize("way", [*WAYS, "torch"])
def test_loss_and_gradients_equal_float64_whatever_the_chunk(way, more, chunk):
    for bias in (True, False):
        hidden, head, targets, weights = setting(bias)
        if way == "torch" and more:
            with pytest.raises(TypeError, match="z_loss|cap"):  # it has neither, and must not pass over them
                OTHERS[way](hidden, head, targets, weights, chunk=chunk, **more)
            continue
        total, nll = (WAYS | OTHERS)[way](hidden, head, targets, weights, chunk=chunk, **more)
        wanted, each, gradients = exact(hidden, head, targets, weights, **more)
        assert not nll.requires_grad
        torch.testing.assert_close(total.double(), wanted, atol=1e-5, rtol=1e-6)
        torch.testing.assert_close(nll.double(), each, atol=1e-5, rtol=1e-5)
        (3 * total).backward()  # as a step scales what its micro-batches sum up
        for found, expected in zip([hidden.grad, *(p.grad for p in head.parameters())], gradients):
            torch.testing.assert_close(found.double(), 3 * expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("way, most", [("one pass", 1.5), ("chunks", 3)])
@pytest.mark.parametrize("weights_are", ["float32 under autocast", "bfloat16"])
def test_bfloat16_products_lose_little_more_than_the_plain_loss(way, most, weights_are):
    low = weights_are == "bfloat16"
    hidden, head, targets, weights = setting(False, torch.bfloat16 if low else torch.float32)
    _, each, gradients = exact(hidden, head, targets, weights)
    with torch.autocast("cpu", torch.bfloat16, enabled=not low):
        total, nll = WAYS[way](hidden, head, targets, weights, chunk=8)
        plain = nn.functional.cross_entropy(head(hidden).float(), targets, reduction="none")
    assert total.dtype == nll.dtype == torch.float32
    found = torch.autograd.grad(total, [hidden, head.weight])
    usual = torch.autograd.grad((plain * weights).sum(), [hidden, head.weight])
    for a, b, right in zip(found, usual, gradients):
        assert a.dtype == b.dtype
        assert (a.double() - right).norm() <= most * (b.double() - right).norm()
    assert (nll.double() - each).norm() <= most * (plain.double() - each).norm()


def test_a_head_that_is_more_than_its_weight_is_refused():
    hidden, inner, targets, weights = setting()
    with pytest.raises(ConfigError, match="the head is a Wrapped"):
        weighted_loss(hidden, Wrapped(inner), targets, weights, chunk=8)


@pytest.mark.parametrize("frozen", ["hidden", "head"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_right_one(frozen):
    hidden, head, targets, weights = setting()
    gradients = exact(hidden, head, targets, weights)[2]
    (hidden if frozen == "hidden" else head).requires_grad_(False)
    weighted_loss(hidden, head, targets, weights, chunk=8)[0].backward()
    for x, right in zip([hidden, head.weight, head.bias], gradients):
        if x.requires_grad:
            torch.testing.assert_close(x.grad.double(), right, atol=1e-5, rtol=1e-5)
        else:
            assert x.grad is None


@pytest.mark.parametrize("way", WAYS)
def test_no_position_gives_no_loss_and_a_usable_graph(way):
    """Defect 16: a module skipped on one rank hangs the others."""
    head = nn.Linear(8, 21)
    total, nll = WAYS[way](torch.zeros(0, 8, requires_grad=True), head, torch.zeros(0, dtype=torch.long),
                           torch.zeros(0))
    total.backward()
    assert nll.shape == (0,) and total == 0 and head.weight.grad.abs().sum() == 0


def test_differentiating_twice_is_refused_rather_than_wrong():
    hidden, head, targets, weights = setting()
    total, _ = weighted_loss(hidden, head, targets, weights)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        total.backward()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("way", [*WAYS, *OTHERS])
def test_on_a_gpu_each_way_equals_float64(way):
    if way == "liger":
        pytest.importorskip("liger_kernel")
    hidden, head, targets, weights = setting(False)
    _, each, gradients = exact(hidden, head, targets, weights)
    hidden, head = hidden.detach().cuda().requires_grad_(), head.cuda()
    loss = by_liger if way == "liger" else partial((WAYS | OTHERS)[way], chunk=8)
    total, nll = loss(hidden, head, targets.cuda(), weights.cuda())
    torch.testing.assert_close(nll.double().cpu(), each, atol=1e-3, rtol=1e-3)
    for found, right in zip(torch.autograd.grad(total, [hidden, head.weight]), gradients):
        torch.testing.assert_close(found.double().cpu(), right, atol=1e-3, rtol=1e-3)
