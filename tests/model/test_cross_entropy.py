import numpy as np
import torch

from unimm.model.cross_entropy import token_losses


def test_token_losses_equal_a_float64_loop_whatever_the_chunk():
    torch.manual_seed(0)
    hidden, head = torch.randn(37, 8, requires_grad=True), torch.nn.Linear(8, 21, bias=False)
    targets = torch.randint(21, (37,))
    expected = []
    for h, t in zip(hidden.detach().double().numpy(), targets.tolist()):
        logits = head.weight.detach().double().numpy() @ h
        expected.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[t])
    gradients = []
    for chunk in (100, 37, 8, 1):
        losses = token_losses(hidden, head, targets, chunk)
        np.testing.assert_allclose(losses.detach().numpy(), expected, atol=1e-5)
        gradients.append(torch.autograd.grad(losses.sum(), [hidden, head.weight]))
    for g in gradients[1:]:
        torch.testing.assert_close(g, gradients[0])


def test_no_position_gives_no_loss_and_a_usable_graph():
    head = torch.nn.Linear(8, 21)
    losses = token_losses(torch.zeros(0, 8, requires_grad=True), head, torch.zeros(0, dtype=torch.long))
    losses.sum().backward()
    assert losses.shape == (0,) and head.weight.grad.abs().sum() == 0
