"""How good an image tokenizer is: likeness of its reconstructions, use of its codes, what can be read from its vectors.

torchmetrics has PSNR, SSIM and the Frechet distance too and serves as the reference in the tests; importing it brings
in transformers and matplotlib, 1.3 s for 25 lines, and its SSIM averages reflected borders in.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimm.images.base import ImageTokenizer, arrays
from unimm.images.tokenizer import to_codes, to_pixels
from unimm.sample import Content, Latents

AT_ONCE = 64


class Measures(NamedTuple):
    """values by name, see `measure`; the uint8 images that came back; int (size,), how often each code occurred, by
    codebook, and where a position has several also by place: "visual", or "visual_1", "visual_2"; none of latents"""

    values: dict[str, float]
    back: list[np.ndarray]
    counts: dict[str, np.ndarray]


def measure(tokenizer: ImageTokenizer, images: list[np.ndarray]) -> Measures:
    """Scores of reconstructing uint8 (H, W, 3) images through codes, or latents, and back to uint8.

    psnr                      decibels, from the mean squared error over all images
    ssim                      mean structural similarity, at most 1
    tokens.mean least most    positions of an image, all levels together
    codes.NAME.size           how many codes there are, for each name of `Measures.counts`, and in these images
               used, usage    how many occurred, and their share
               entropy        of their frequencies, in bits
               perplexity     how many equally frequent codes would have that entropy
               zipf           slope of log frequency over log rank, by least squares; 0 where all are equally frequent
    """
    contents = to_codes(tokenizer, images)
    back = to_pixels(tokenizer, contents)
    lengths, counts = [sum(map(len, arrays(each))) for each in contents], code_counts(tokenizer, contents)
    values = {**likeness(images, back), "tokens.mean": float(np.mean(lengths)),
              "tokens.least": min(lengths), "tokens.most": max(lengths)}
    for name, found in counts.items():
        used = found[found > 0]
        values |= {f"codes.{name}.size": len(found), f"codes.{name}.used": len(used),
                   f"codes.{name}.usage": len(used) / len(found), f"codes.{name}.entropy": entropy(found) / np.log(2),
                   f"codes.{name}.perplexity": float(np.exp(entropy(found))), f"codes.{name}.zipf": zipf(found)}
    return Measures(values, back, counts)


def code_counts(tokenizer: ImageTokenizer, contents: list[Content]) -> dict[str, np.ndarray]:
    """How often each code occurred: int (size,) for every level, or for every place of it; see `Measures`."""
    found = {}
    for n, (book, (size, depth)) in enumerate(tokenizer.books.items()):
        ids = np.concatenate([content.levels[n].ids for content in contents])  # (positions of all, depth)
        for place in range(depth):
            name = book if depth == 1 else f"{book}_{place + 1}"
            found[name] = np.bincount(ids[:, place], minlength=size)
    return found


def likeness(images: list[np.ndarray], back: list[np.ndarray]) -> dict[str, float]:
    """PSNR and SSIM of two lists of uint8 (H, W, 3) images of one size."""
    a, b = (torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2).float() / 255 for some in (images, back))
    return {"psnr": psnr(a, b), "ssim": ssim(a, b)}


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal to noise in decibels of images in [0, 1], one mean squared error over all of them; inf if equal."""
    return float(-10 * (a.double() - b.double()).square().mean().log10())


def ssim(a: Tensor, b: Tensor) -> float:
    """Mean structural similarity of images in [0, 1], (B, C, H, W) (Wang et al. 2004).

    Gaussian window of 11 with sigma 1.5, where it lies wholly inside the image; K1 0.01, K2 0.03.
    """
    window = min(11, *(n - 1 + n % 2 for n in a.shape[-2:]))
    g = torch.signal.windows.gaussian(window, std=1.5, dtype=a.dtype)
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


def entropy(counts: np.ndarray) -> float:
    """Of the codes' frequencies in nats, from how often each occurred."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def zipf(counts: np.ndarray) -> float:
    """The slope of log frequency over log rank of those that occurred; -1 is Zipf's law, 0 no slope or one code."""
    ordered = np.sort(counts[counts > 0])[::-1]
    if len(ordered) < 2:
        return 0.0
    return float(np.polyfit(np.log(np.arange(1, len(ordered) + 1)), np.log(ordered), 1)[0])


@torch.no_grad()
def pooled_vectors(tokenizer: ImageTokenizer, images: list[np.ndarray]) -> np.ndarray:
    """What the codes of each image stand for, or its latents, averaged over its positions: float64 (N, dim)."""
    def pooled(content: Content) -> Tensor:
        rows = torch.from_numpy(arrays(content)[0]).to(tokenizer.device)
        if isinstance(content, Latents):
            return rows.mean(0)
        if len(content.levels) > 1:  # they lie side by side for the decoder
            return tokenizer.conditions([content])[0].mean((1, 2))
        return tokenizer.vectors_of(rows.long().squeeze(-1)).mean(0)

    return torch.stack([pooled(content) for content in to_codes(tokenizer, images)]).double().cpu().numpy()


def probe(known: np.ndarray, names: list[str], asked: np.ndarray, right: list[str], ridge: float = 1e-3) -> float:
    """Share of `asked` (M, dim) whose names a linear map reads, fitted to `known` (N, dim) and its names by ridge
    regression on indicators, in float64; channels are brought to mean 0 and deviation 1 first."""
    labels = sorted(set(names))
    mean, deviation = known.mean(0), known.std(0) + 1e-8
    a, b = ((x - mean) / deviation for x in (known, asked))
    targets = np.array(names)[:, None] == np.array(labels)
    share = targets.mean(0)
    map_ = np.linalg.solve(a.T @ a + ridge * len(a) * np.eye(a.shape[1]), a.T @ (targets - share))
    return float(np.mean(np.array(labels)[(b @ map_ + share).argmax(1)] == np.array(right)))


class RandomFeatures(nn.Sequential):
    """float32 (B, 3, H, W) in [-1, 1] -> (B, 96): the mean and the deviation over places of three strided convolutions
    of 16, 32 and 48 channels, untrained, the same in every process. Distances between such features are comparable with
    one another and with no published number."""

    def __init__(self):
        super().__init__(*(layer for a, b in ((3, 16), (16, 32), (32, 48))
                           for layer in (nn.Conv2d(a, b, 3, 2, 1), nn.ReLU())))
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0, 0.2, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        found = super().forward(images).flatten(2)
        return torch.cat([found.mean(2), found.std(2, correction=0)], 1)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of the normals with the means and covariances of features (N, dim) and (M, dim), in float64
    (Heusel et al. 2017, arXiv:1706.08500)."""
    (ma, ca), (mb, cb) = ((x.mean(0), np.atleast_2d(np.cov(x, rowvar=False))) for x in (a, b))
    # The trace of the root of ca cb: its eigenvalues are those of a positive semidefinite matrix, but for rounding.
    roots = np.sqrt(np.linalg.eigvals(ca @ cb).real.clip(0)).sum()
    return float(((ma - mb) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * roots)
