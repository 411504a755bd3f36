"""Scores against loops in float64, and against torchmetrics."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from unimm.config.images import ConvTokenizer
from unimm.config.quantizers import FSQ
from unimm.images.measure import (
    RandomFeatures,
    code_counts,
    entropy,
    frechet,
    measure,
    pooled_vectors,
    probe,
    psnr,
    ssim,
    zipf,
)
from unimm.images.tokenizer import build_tokenizer, to_codes
from unimm.sample import Codes, Latents, Level


def images(seed, count=2, side=16):
    a = np.random.default_rng(seed).random((count, 3, side, side))
    return torch.from_numpy(a), torch.from_numpy(0.8 * a + 0.2 * np.roll(a, 1, axis=3))


def ssim_by_loop(a, b):
    x = np.arange(11) - 5
    g = np.exp(-(x**2) / 4.5)
    window = np.outer(g, g) / g.sum() ** 2
    scores = []
    for p, q in zip(a.reshape(-1, *a.shape[2:]), b.reshape(-1, *b.shape[2:])):
        for y in range(p.shape[0] - 10):
            for c in range(p.shape[1] - 10):
                u, v = p[y : y + 11, c : c + 11], q[y : y + 11, c : c + 11]
                mu, mv = (window * u).sum(), (window * v).sum()
                vu, vv = (window * (u - mu) ** 2).sum(), (window * (v - mv) ** 2).sum()
                cov = (window * (u - mu) * (v - mv)).sum()
                scores.append((2 * mu * mv + 1e-4) * (2 * cov + 9e-4) / ((mu**2 + mv**2 + 1e-4) * (vu + vv + 9e-4)))
    return np.mean(scores)


def test_ssim_equals_a_float64_loop_and_torchmetrics():
    from torchmetrics.functional.image import structural_similarity_index_measure as reference

    a, b = images(0)
    assert ssim(a, b) == pytest.approx(ssim_by_loop(a.numpy(), b.numpy()), rel=1e-9)
    # torchmetrics averages a border of reflected pixels in as well: leave it out.
    full = reference(a.float(), b.float(), data_range=1.0, return_full_image=True)[1]
    assert ssim(a.float(), b.float()) == pytest.approx(float(full[..., 5:-5, 5:-5].mean()), abs=1e-5)
    assert ssim(a, a) == pytest.approx(1)


def test_ssim_takes_images_smaller_than_its_window_and_more_than_fit_at_once():
    a, b = images(1, count=130, side=8)
    assert ssim(a, b) == pytest.approx(np.mean([ssim(p[None], q[None]) for p, q in zip(a, b)]), rel=1e-9)


def test_psnr_equals_a_float64_loop_and_torchmetrics():
    from torchmetrics.functional.image import peak_signal_noise_ratio as reference

    a, b = images(2)
    error = sum((p - q) ** 2 for p, q in zip(a.flatten().tolist(), b.flatten().tolist())) / a.numel()
    assert psnr(a, b) == pytest.approx(10 * math.log10(1 / error), rel=1e-9)
    assert psnr(a, b) == pytest.approx(float(reference(a, b, data_range=1.0)), rel=1e-6)
    assert psnr(a, a) == math.inf


def test_entropy_is_that_of_the_frequencies_of_what_occurred():
    assert entropy(np.array([5, 0, 5, 5, 5])) == pytest.approx(math.log(4))
    assert entropy(np.array([7, 0])) == 0
    assert entropy(np.array([1, 3])) == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3))


def test_the_zipf_slope_is_the_exponent_of_a_power_law_and_nothing_of_equal_or_lone_codes():
    ranks = np.arange(1, 200)
    for slope in (-0.5, -1.0, -2.0):
        counts = 1e9 * ranks**slope
        np.random.default_rng(0).shuffle(counts)
        assert zipf(np.append(counts, [0, 0])) == pytest.approx(slope, rel=1e-9)
    assert zipf(np.full(9, 4)) == pytest.approx(0) and zipf(np.array([0, 5])) == 0
    often = np.array([9, 4, 4, 1, 0])
    assert zipf(often) == pytest.approx(np.polyfit(np.log([1, 2, 3, 4]), np.log([9, 4, 4, 1]), 1)[0])


@pytest.mark.parametrize("dim", [1, 8])
def test_the_frechet_distance_is_that_of_torchmetrics_and_nothing_of_equals(dim):
    from torchmetrics.image.fid import _compute_fid

    rng = np.random.default_rng(dim)
    a, b = rng.normal(size=(50, dim)) @ rng.normal(size=(dim, dim)), rng.normal(0.5, 2, size=(80, dim))
    moments = [torch.from_numpy(x) for each in (a, b) for x in (each.mean(0), np.atleast_2d(np.cov(each.T)))]
    assert frechet(a, b) == pytest.approx(float(_compute_fid(*moments)), rel=1e-6)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6) and frechet(a, a + 3) == pytest.approx(9 * dim)


def test_random_features_are_the_same_in_every_process_and_leave_the_random_state_alone():
    torch.manual_seed(1)
    x, state = torch.rand(3, 3, 32, 32), torch.get_rng_state()
    first = RandomFeatures()(x)
    assert first.shape == (3, 96) and (torch.get_rng_state() != state).any()  # the default start of layers draws
    torch.manual_seed(2)
    assert torch.equal(RandomFeatures()(x), first)
    far, near = x.roll(8, 3).flip(0), (x + 0.02).clamp(0, 1)
    assert (RandomFeatures()(near) - first).norm() < (RandomFeatures()(1 - x) - first).norm()
    assert torch.allclose(RandomFeatures()(far).flip(0), RandomFeatures()(x.roll(8, 3)))


def test_a_probe_reads_what_is_linear_and_nothing_that_is_not_there():
    rng = np.random.default_rng(0)
    known, asked = rng.normal(size=(300, 12)), rng.normal(size=(200, 12))
    names = [["red", "green", "blue"][n] for n in (known[:, :3]).argmax(1)]
    right = [["red", "green", "blue"][n] for n in (asked[:, :3]).argmax(1)]
    assert probe(known, names, asked, right) > 0.85
    assert probe(known * 100 + 7, names, asked * 100 + 7, right) == probe(known, names, asked, right)
    assert probe(known[:, 3:], names, asked[:, 3:], right) < 0.5
    # Against the same system solved by least squares with rows that stand for the penalty.
    a = (known - known.mean(0)) / known.std(0)
    targets = np.array(names)[:, None] == np.array(["blue", "green", "red"])
    rows = np.concatenate([a, np.sqrt(1e-3 * len(a)) * np.eye(12)])
    map_ = np.linalg.lstsq(rows, np.concatenate([targets - targets.mean(0), np.zeros((12, 3))]), rcond=None)[0]
    read = (((asked - known.mean(0)) / known.std(0)) @ map_ + targets.mean(0)).argmax(1)
    assert probe(known, names, asked, right) == np.mean(np.array(["blue", "green", "red"])[read] == right)


class Told:
    """What `measure` asks of a tokenizer, with these contents."""

    def __init__(self, books):
        self.books = books


def test_codes_are_counted_by_level_and_by_place():
    two = [Codes((Level(np.array([[0], [1]])), Level(np.array([[3], [3], [2]])))),
           Codes((Level(np.array([[1], [1]])), Level(np.array([[0], [3], [2]]))))]
    found = code_counts(Told({"semantic": (2, 1), "pixel": (5, 1)}), two)
    assert {name: counts.tolist() for name, counts in found.items()} == {"semantic": [1, 3], "pixel": [1, 0, 2, 3, 0]}
    deep = [Codes((Level(np.array([[0, 2], [1, 2]])),)), Codes((Level(np.array([[0, 1]])),))]
    found = code_counts(Told({"visual": (3, 2)}), deep)
    assert {name: counts.tolist() for name, counts in found.items()} == {"visual_1": [2, 1, 0], "visual_2": [0, 1, 2]}
    assert code_counts(Told({}), [Latents(np.zeros((4, 2), np.float32))]) == {}


def test_measure_says_how_long_images_are_and_how_codes_are_used():
    torch.manual_seed(0)
    tokenizer = build_tokenizer(ConvTokenizer(image=16, downsample=4, width=16, quantizer=FSQ(levels=(4, 4))))
    pictures = list(np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8))
    found = measure(tokenizer, pictures).values
    seen = Counter(i for c in to_codes(tokenizer, pictures) for i in c.levels[0].ids[:, 0].tolist())
    total = sum(seen.values())
    used = {name: found[f"codes.visual.{name}"] for name in ("size", "used", "usage", "perplexity", "entropy")}
    bits = -sum(n / total * math.log2(n / total) for n in seen.values())
    assert used == pytest.approx({"size": 16, "used": len(seen), "usage": len(seen) / 16, "entropy": bits,
                                  "perplexity": 2**bits})
    assert (found["tokens.least"], found["tokens.mean"], found["tokens.most"]) == (16, 16, 16)
    assert 0 < found["psnr"] < 20 and found["ssim"] < 0.5


def test_measure_takes_latents_and_lengths_that_vary(monkeypatch):
    from unimm.images import measure as module

    pictures = list(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8))
    latents = [Latents(np.zeros((n, 2), np.float32)) for n in (2, 3, 7)]
    monkeypatch.setattr(module, "to_codes", lambda tokenizer, images: latents)
    monkeypatch.setattr(module, "to_pixels", lambda drawer, contents: pictures)
    found = measure(Told({}), pictures)
    assert found.counts == {} and not [name for name in found.values if name.startswith("codes")]
    assert [found.values[f"tokens.{name}"] for name in ("mean", "least", "most")] == [4, 2, 7]


def test_pooled_vectors_are_the_means_of_what_the_codes_stand_for():
    torch.manual_seed(0)
    tokenizer = build_tokenizer(ConvTokenizer(image=16, downsample=4, width=16, quantizer=FSQ(levels=(4, 4)))).eval()
    pictures = list(np.random.default_rng(0).integers(0, 256, (70, 16, 16, 3), dtype=np.uint8))
    ids = torch.tensor(np.stack([c.levels[0].ids[:, 0] for c in to_codes(tokenizer, pictures)])).long()
    assert np.allclose(pooled_vectors(tokenizer, pictures), tokenizer.vectors_of(ids).mean(1).detach(), atol=1e-6)
