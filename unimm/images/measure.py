"""How good an image tokenizer is: likeness of its reconstructions, use of its codes.

torchmetrics has PSNR and SSIM too and serves as the reference in the tests; importing it brings in
transformers and matplotlib, 1.3 s for 20 lines, and its SSIM averages reflected borders in.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unimm.images.base import ImageTokenizer
from unimm.images.tokenizer import to_codes, to_pixels

AT_ONCE = 64


class Measures(NamedTuple):
    """values by name, see `measure`; the uint8 images that came back; int (size,), how often each code of the last
    level occurred, at any depth, or None of latents"""

    values: dict[str, float]
    back: list[np.ndarray]
    counts: np.ndarray | None


def measure(tokenizer: ImageTokenizer, images: list[np.ndarray]) -> Measures:
    """Scores of reconstructing uint8 (H, W, 3) images through codes and back to uint8.

    psnr         decibels, from the mean squared error over all images
    ssim         mean structural similarity, at most 1
    codes_used   how many different codes occurred; of latents this and what follows is left out
    code_usage   their share of the codebook
    perplexity   how many equally frequent codes would have the entropy of those that occurred
    """
    codes = to_codes(tokenizer, images)
    back = to_pixels(tokenizer, codes)
    a, b = _unit(images), _unit(back)
    values = {"psnr": psnr(a, b), "ssim": ssim(a, b)}
    if not tokenizer.books:
        return Measures(values, back, None)
    counts = np.bincount(np.concatenate([c.levels[-1].ids.ravel() for c in codes]), minlength=tokenizer.size)
    used = int((counts > 0).sum())
    values |= {"codes_used": used, "code_usage": used / tokenizer.size, "perplexity": perplexity(counts)}
    return Measures(values, back, counts)


def _unit(images: list[np.ndarray]) -> Tensor:
    """uint8 (H, W, 3) -> float32 (B, 3, H, W) in [0, 1]"""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal to noise in decibels of images in [0, 1], one mean squared error over all of them; inf if equal."""
    return float(-10 * (a.double() - b.double()).square().mean().log10())


def ssim(a: Tensor, b: Tensor) -> float:
    """Mean structural similarity of images in [0, 1], (B, C, H, W) (Wang et al. 2004).

    Gaussian window of 11 with sigma 1.5, where it lies wholly inside the image; K1 0.01, K2 0.03.
    """
    window = min(11, *(n - 1 + n % 2 for n in a.shape[-2:]))
    x = torch.arange(window, dtype=a.dtype) - window // 2
    g = torch.exp(-(x**2) / (2 * 1.5**2))
    g = g / g.sum()

    def blur(image: Tensor) -> Tensor:
        flat = image.flatten(0, 1)[:, None]
        return F.conv2d(F.conv2d(flat, g.view(1, 1, 1, -1)), g.view(1, 1, -1, 1))

    total = 0.0
    for p, q in zip(a.split(AT_ONCE), b.split(AT_ONCE)):
        mp, mq = blur(p), blur(q)
        vp, vq, cov = blur(p * p) - mp * mp, blur(q * q) - mq * mq, blur(p * q) - mp * mq
        like = (2 * mp * mq + 0.01**2) * (2 * cov + 0.03**2) / ((mp**2 + mq**2 + 0.01**2) * (vp + vq + 0.03**2))
        total += float(like.mean()) * len(p)
    return total / len(a)


def perplexity(counts: np.ndarray) -> float:
    """exp of the entropy of the codes' frequencies, from how often each occurred."""
    p = counts[counts > 0] / counts.sum()
    return float(np.exp(-(p * np.log(p)).sum()))
