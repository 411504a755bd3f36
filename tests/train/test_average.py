import pytest
import torch
from torch import nn

from unimm.train.pieces import Held, Masters


def averages_of(whole: torch.Tensor, owners: list[torch.Tensor]) -> Masters:
    """Masters of one parameter that lies in these owners, one after the other."""
    module = nn.Linear(10, 1, bias=False)
    module.weight.data = whole[None]
    starts = [0, *(len(owner) for owner in owners)]
    held = [Held(name="weight", shape=(1, 10), moments=(), start=start, size=len(owner), owner=owner, offset=0)
            for start, owner in zip(starts, owners)]
    return Masters(module, torch.optim.SGD(module.parameters()), held, 0.9, shared=True)


def test_an_average_is_that_of_the_definition_however_the_weights_are_cut():
    torch.manual_seed(0)
    steps = torch.randn(40, 10, dtype=torch.float64)
    whole, cut = torch.zeros(10), [torch.zeros(7), torch.zeros(3)]
    both = averages_of(whole, [whole]), averages_of(whole, cut)
    want = torch.zeros(10, dtype=torch.float64)
    for n, weights in enumerate(steps, 1):
        whole.copy_(weights)
        cut[0].copy_(weights[:7])
        cut[1].copy_(weights[7:])
        for masters in both:
            masters.updated()
        decay = min(0.9, (1 + n) / (10 + n))
        want = decay * want + (1 - decay) * weights
    one, two = (masters.weights()["weight"][0] for masters in both)
    assert one.tolist() == pytest.approx(want.tolist(), abs=1e-6) and torch.equal(one, two)
