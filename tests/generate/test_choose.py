import math

import numpy as np
import torch

from unimm.config.sampling import Choice
from unimm.generate.choose import adaptive_top_k, choose


def released(logits: np.ndarray, most: int) -> int:
    """nonwhy/PURE, pure/inference_solver.py, InterleavedTopKLogitsWarper, of one row."""
    p = np.exp(logits - logits.max())
    p /= p.sum()
    entropy = max(0, min(float(-(p * np.log(p + 1e-10)).sum()), 10))
    return max(1, min(int(round(1 + (most - 1) / (1 + math.exp(-(entropy - 5))))), most))


def test_top_k_follows_the_entropy_as_in_pures_release():
    logits = np.random.default_rng(0).normal(size=(12, 8192)) * np.linspace(0, 8, 12)[:, None]
    found = adaptive_top_k(torch.tensor(logits), 2000)
    assert found.tolist() == [released(row, 2000) for row in logits]
    assert found[0] > 1900 and found[-1] < 100
    certain = torch.tensor([[100.0] + [0.0] * 8191])
    assert adaptive_top_k(certain, 2000).tolist() == [14], "1 + 1999 sigmoid(-5), however certain the model is"
    assert adaptive_top_k(certain, 1).tolist() == [1]


def test_each_row_keeps_as_many_ids_as_its_own_entropy_allows():
    logits = torch.zeros(4000, 400).double()
    logits[2000:] -= torch.arange(400) / 3  # the likeliest first
    logits -= torch.arange(400) * 1e-6
    keep = adaptive_top_k(logits[[0, 2000]], 300).tolist()
    chosen = choose(logits, np.tile((np.arange(2000) + 0.5) / 2000, 2), Choice(adaptive_k=300))
    assert chosen[:2000].max() == keep[0] - 1 and chosen[2000:].max() < keep[1] < keep[0]
    assert choose(logits[:1, :3], np.array([0.99]), Choice(adaptive_k=10_000))[0] == 2, "more than there are is all"


def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(400, 4)
    uniform = (np.arange(400) + 0.5) / 400
    assert set(choose(logits, uniform, Choice(min_p=0.09))) == {0, 1, 2, 3}
    assert set(choose(logits, uniform, Choice(min_p=0.2))) == {0, 1, 2}
    assert set(choose(logits, uniform, Choice(min_p=0.7))) == {0}
    assert set(choose(logits, uniform, Choice(min_p=1.0))) == {0}
