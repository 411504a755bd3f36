import math

import numpy as np
import pytest
import torch

from unimm.config.sampling import Choice
from unimm.generate.choose import adaptive_top_k, choose, gumbel, marks, places


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


CHOICES = (Choice(), Choice(temperature=0.4), Choice(top_k=5), Choice(top_k=1), Choice(top_k=1000), Choice(top_p=0.7),
           Choice(top_p=0.05), Choice(min_p=0.2), Choice(min_p=1.0), Choice(adaptive_k=30), Choice(adaptive_k=10_000),
           Choice(temperature=1.7, top_k=20, top_p=0.9, min_p=0.02, adaptive_k=60))


def noise(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Of n places and 60 ids."""
    seeds = np.full(n, seed, np.uint64)
    return torch.from_numpy(places(seeds, np.arange(n))), torch.from_numpy(marks(np.arange(100, 160)))


def kept(logits: np.ndarray, how: Choice) -> list[int]:
    """The columns of one row that the filters leave, in float64, one by one."""
    order = sorted(range(len(logits)), key=lambda c: -logits[c])
    if how.adaptive_k:
        order = order[:released(logits, how.adaptive_k)]
    order = order[:how.top_k or None]
    p = {c: math.exp((logits[c] - logits[order[0]]) / how.temperature) for c in order}
    total, above, stay = sum(p.values()), 0.0, []
    for column in order:
        if above / total < how.top_p and p[column] >= how.min_p:
            stay.append(column)
        above += p[column]
    return stay


@pytest.mark.parametrize("how", CHOICES)
def test_filters_keep_what_a_plain_loop_keeps_and_the_noise_decides_among_it(how):
    logits = torch.tensor(np.random.default_rng(0).normal(size=(40, 60)) * np.linspace(0.1, 6, 40)[:, None]).float()
    place, mark = noise(40)
    added = gumbel(place, mark).double().numpy()
    found = choose(logits, how, place, mark).tolist()
    assert choose(logits[7:8], how, place[7:8], mark).tolist() == found[7:8]
    for row, column in enumerate(found):
        stay = kept(logits[row].double().numpy(), how)
        scores = [float(logits[row, c]) / how.temperature + added[row, c] for c in stay]
        assert column == stay[int(np.argmax(scores))]


def test_temperature_0_takes_the_likeliest():
    logits = torch.randn(5, 60)
    assert choose(logits, Choice(temperature=0.0)).tolist() == logits.argmax(-1).tolist()


def chi_squared(found: np.ndarray, expected: np.ndarray) -> float:
    """How many standard deviations a chi-squared lies above what chance gives (Wilson & Hilferty 1931)."""
    freedom = len(found) - 1
    x = ((found - expected) ** 2 / expected).sum() / freedom
    return (x ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))


@pytest.mark.parametrize("along", ["seeds", "places"])
def test_chosen_ids_follow_the_softmax_alone_and_in_pairs(along):
    n, logits = 60_000, torch.randn(20, generator=torch.Generator().manual_seed(3))
    seeds, written = (np.arange(n), np.zeros(n, int)) if along == "seeds" else (np.full(n, 5), np.arange(n))
    key = torch.from_numpy(places(seeds.astype(np.uint64), written))
    p = torch.softmax(logits.double(), 0).numpy()
    found = choose(logits.expand(n, -1).contiguous(), Choice(), key, torch.from_numpy(marks(np.arange(20)))).numpy()
    assert abs(chi_squared(np.bincount(found, minlength=20), n * p)) < 4
    pairs = np.bincount(found[:-1] * 20 + found[1:], minlength=400)
    assert abs(chi_squared(pairs, (n - 1) * np.outer(p, p).ravel())) < 4


def test_noise_depends_on_seed_place_and_id_alone():
    place, mark = noise(50)
    whole = gumbel(place, mark)
    assert torch.equal(gumbel(place[9:10], mark[3:7]), whole[9:10, 3:7])
    assert whole.isfinite().all() and whole.unique().numel() > 2990
    assert not torch.equal(gumbel(noise(50, seed=1)[0], mark), whole)
    assert abs(float(whole.mean()) - 0.5772) < 0.1 and abs(float(whole.var()) - math.pi ** 2 / 6) < 0.2


def test_noise_stays_finite_where_the_hash_is_at_its_ends():
    every = torch.tensor([0, -1, 2 ** 31 - 1, -2 ** 31], dtype=torch.int32)
    assert gumbel(torch.randint(-2 ** 31, 2 ** 31 - 1, (20_000, 2)).int(), every).isfinite().all()
