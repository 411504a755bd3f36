"""What an objective hands to the training loop."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unimm.sample import Pictures

SAME_COLOUR = 0.05
"""Largest difference of a channel, of 2, at which a pixel still counts as background."""


@dataclass(frozen=True, eq=False)
class Losses:
    """The loss of one forward on one rank.

    total   scalar with a graph: the *sum* over what is learned, each by its weight. The loop divides it by the weight
            of the whole step (its `weigh`), so that any split over forwards and ranks gives the same gradient
    parts   name -> (sum, count), scalars without a graph: "text" and "image" stay apart, and their
            averages over steps and ranks are weighted by what was counted
    """

    total: Tensor
    parts: dict[str, tuple[Tensor | float, Tensor | float]] = field(default_factory=dict)


class Weight(NamedTuple):
    """learned: the weights of what a batch supervises, added up; read: how many tokens or images it reads."""

    learned: float
    read: int


class OfPictures(nn.Module):
    """forward(Pictures) -> Losses: the named losses of `losses`, each a mean over images, each reported apart."""

    def losses(self, images: Tensor, texts: tuple[str, ...]) -> dict[str, Tensor]:
        """Of float32 images (B, 3, H, W) in [-1, 1] with their captions: scalars, already weighted."""

    def forward(self, batch: Pictures) -> Losses:
        device, n = next(self.parameters()).device, len(batch)
        images = torch.as_tensor(batch.pixels, device=device).permute(0, 3, 1, 2).float() / 127.5 - 1
        found = self.losses(images, batch.texts)
        return Losses(sum(found.values()) * n, {name: (loss.detach() * n, n) for name, loss in found.items()})

    def weigh(self, batch: Pictures) -> Weight:
        """The weight of a batch still on the host, known before its forward: what the loop asks of all it trains."""
        return Weight(float(len(batch)), len(batch))


def pixel_errors(again: Tensor, images: Tensor, foreground_weight: float, l1: float) -> dict[str, Tensor]:
    """Squared and absolute error of images (B, 3, H, W) given back: means over images of means over pixels, those off
    the border's colour weighted by foreground_weight."""
    border = torch.cat([images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], dim=2)
    background = border.median(dim=2).values[:, :, None, None]
    foreground = (images - background).abs().amax(1, keepdim=True) > SAME_COLOUR
    weight = 1 + (foreground_weight - 1) * foreground.float()  # (B, 1, H, W)
    weight = weight / (3 * len(images) * weight.sum((1, 2, 3), keepdim=True))
    difference = again - images
    return {"mse": (weight * difference.square()).sum(), "l1": l1 * (weight * difference.abs()).sum()}
