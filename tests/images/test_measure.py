"""Scores against loops in float64, and against torchmetrics."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from unimm.config.images import ConvTokenizer
from unimm.config.quantizers import FSQ
from unimm.images.measure import measure, perplexity, psnr, ssim
from unimm.images.tokenizer import build_tokenizer, to_codes


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


def test_perplexity_is_the_number_of_equally_frequent_codes():
    assert perplexity(np.array([5, 0, 5, 5, 5])) == pytest.approx(4)
    assert perplexity(np.array([7, 0])) == pytest.approx(1)
    assert perplexity(np.array([1, 3])) == pytest.approx(2 ** (0.25 * 2 + 0.75 * math.log2(4 / 3)))


def test_measure_counts_the_codes_that_occur():
    torch.manual_seed(0)
    tokenizer = build_tokenizer(ConvTokenizer(image=16, downsample=4, width=16, quantizer=FSQ(levels=(4, 4))))
    pictures = list(np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8))
    found = measure(tokenizer, pictures).values
    seen = Counter(i for c in to_codes(tokenizer, pictures) for i in c.levels[0].ids[:, 0].tolist())
    total = sum(seen.values())
    assert found["codes_used"] == len(seen) and found["code_usage"] == len(seen) / 16
    assert found["perplexity"] == pytest.approx(math.exp(-sum(n / total * math.log(n / total) for n in seen.values())))
    assert 0 < found["psnr"] < 20 and found["ssim"] < 0.5
