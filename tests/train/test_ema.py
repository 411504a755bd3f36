import pytest
import torch

from unimm.train.ema import Average


def test_an_average_is_that_of_the_definition_however_the_weights_are_cut():
    torch.manual_seed(0)
    steps = torch.randn(40, 10, dtype=torch.float64)
    whole, cut = torch.zeros(10), [torch.zeros(7), torch.zeros(3)]
    averages = Average([whole], 0.9), Average(cut, 0.9)
    want = torch.zeros(10, dtype=torch.float64)
    for n, weights in enumerate(steps, 1):
        whole.copy_(weights)
        cut[0].copy_(weights[:7])
        cut[1].copy_(weights[7:])
        for average in averages:
            average.update(n)
        decay = min(0.9, (1 + n) / (10 + n))
        want = decay * want + (1 - decay) * weights
    assert averages[0].of[whole].tolist() == pytest.approx(want.tolist(), abs=1e-6)
    assert torch.equal(torch.cat([averages[1].of[c] for c in cut]), averages[0].of[whole])
