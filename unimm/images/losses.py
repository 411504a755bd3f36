"""Training the image tokenizer: its own losses, and what one of one's own is asked for beside them, by `config.losses`.

The modules here learn beside the tokenizer and are no part of it, so that a saved tokenizer has none of them. The
feature network is no part of either: it is frozen, and whoever builds this has it.

Pictures and their captions find each other: a small text side of ours, and the sigmoid loss of SigLIP.
"""

import math
import re
from itertools import pairwise
from typing import assert_never
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from unimm.config import images as config
from unimm.config.images import OwnTokenizer
from unimm.images.base import ImageTokenizer, TokenizerError
from unimm.losses import OfPictures

ROWS, DIM = 2**13, 128


def hashed(text: str) -> list[int]:
    """A row of the table for each word and each two words in a row; the same in every process."""
    words = re.findall(r"\w+", text.lower())
    return [crc32(" ".join(piece).encode()) % ROWS for piece in [*((word,) for word in words), *pairwise(words)]]


class Captions(nn.Module):
    """forward(float32 (B, width), B texts) -> the loss () of who belongs to whom (Zhai et al. 2023, arXiv:2303.15343,
    3.2), over the pairs of this forward.

    A text is the mean of its words' and word pairs' vectors. What has no text, or no word in it, takes no part; of
    equal captions one's picture is no stranger to the other.
    """

    def __init__(self, width: int):
        super().__init__()
        self.words = nn.EmbeddingBag(ROWS, DIM, mode="mean")
        nn.init.normal_(self.words.weight, std=0.1)  # so that a step of the optimizer is one in angle too
        self.project = nn.Linear(width, DIM)
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-5.0))  # the paper's -10 is for batches of thousands

    def logits(self, pooled: Tensor, texts: tuple[str, ...]) -> Tensor:
        """(B, B): picture by text."""
        bags = [hashed(text) for text in texts]
        starts = torch.tensor([0, *map(len, bags)][:-1]).cumsum(0)
        rows = torch.tensor(sum(bags, []), dtype=torch.int64)
        said = self.words(rows.to(pooled.device), starts.to(pooled.device))
        seen = F.normalize(self.project(pooled), dim=1)
        return self.scale.exp() * seen @ F.normalize(said, dim=1).T + self.bias

    def forward(self, pooled: Tensor, texts: tuple[str, ...]) -> Tensor:
        logits = self.logits(pooled, texts).float()
        same = torch.tensor([texts.index(text) for text in texts])
        pair = torch.eye(len(texts), dtype=torch.bool)
        said = torch.tensor([bool(hashed(text)) for text in texts])
        counts = ((same[:, None] != same) | pair) & said[:, None] & said
        sign, counts = (2.0 * pair - 1).to(logits.device), counts.to(logits.device)
        return -(F.logsigmoid(sign * logits) * counts).sum() / max(1, int(said.sum()))


class Contrast(OfPictures):
    """Teaches a feature network to see meaning: pooled features (their mean) of a vision encoder, as of
    `unimm.published.vision`, against captions."""

    def __init__(self, vision: nn.Module):
        super().__init__()
        self.vision = vision
        self.captions = Captions(vision.config.hidden_size)

    def losses(self, images, texts):
        return {"contrast": self.captions(self.vision(images).last_hidden_state.mean(1), texts)}


Hidden = tuple[Tensor, ...]
"""What a feature network says of pictures: (B, positions, width) after each of its layers."""


def perceptual(ours: Hidden, theirs: Hidden) -> Tensor:
    """Squared distance of vectors scaled to length 1, its mean over places and layers (LPIPS, arXiv:1801.03924, eq. 1,
    whose learned channel weights are 1 here)."""
    far = [(F.normalize(a, dim=-1) - F.normalize(b, dim=-1)).square().sum(-1).mean() for a, b in zip(ours, theirs)]
    return sum(far) / len(far)


def gram(ours: Hidden, theirs: Hidden) -> Tensor:
    """Mean squared difference of Gram matrices, which say what occurs together and not where (Gatys et al. 2016,
    eq. 3 and 4, divided by the places)."""
    far = [(a.mT @ a / a.shape[1] - b.mT @ b / b.shape[1]).square().mean() for a, b in zip(ours, theirs)]
    return sum(far) / len(far)


class PatchDiscriminator(nn.Sequential):
    """(B, 3, H, W) -> (B, 1, H / 4, W / 4): above 0 where it looks real (Isola et al. 2017, at two strides)."""

    def __init__(self, width: int = 32):
        super().__init__(
            nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1), nn.GroupNorm(4, 2 * width), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 3, 1, 1))


class AdversarialLoss(nn.Module):
    """Both sides of the game, with one optimizer: the discriminator's hinge loss has pictures without a graph, the
    tokenizer's term the discriminator's weights without one."""

    def __init__(self, wanted: config.Adversarial):
        super().__init__()
        self.after = wanted.after
        self.judge = PatchDiscriminator()
        self.register_buffer("forwards", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor, again: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures, and what came back of them -> the loss of the discriminator, and that of the tokenizer."""
        fixed = {name: p.detach() for name, p in self.judge.named_parameters()}
        shown = (self.forwards >= self.after).float()
        if self.training:
            self.forwards += 1
        hinge = F.relu(1 - self.judge(images)).mean() + F.relu(1 + self.judge(again.detach())).mean()
        return hinge / 2, -shown * functional_call(self.judge, fixed, (again,)).mean()


class DistillLoss(nn.Module):
    """1 - cosine of a linear function of the vectors to the features' last layer, on the features' grid."""

    def __init__(self, dim: int, width: int, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid
        self.linear = nn.Linear(dim, width)

    def forward(self, read: Tensor, target: Tensor) -> Tensor:
        ours = self.linear(read)
        if ours.shape[1] != target.shape[1]:
            if ours.shape[1] != self.grid[0] * self.grid[1]:
                raise TokenizerError(f"distill compares grids, but an image has {ours.shape[1]} tokens and "
                                     f"{target.shape[1]} features; take that loss out, or as many tokens")
            ours = resized(ours.mT.unflatten(2, self.grid), round(target.shape[1] ** 0.5)).flatten(2).mT
        return 1 - F.cosine_similarity(ours, target, dim=-1).mean()


def resized(maps: Tensor, side: int | tuple[int, int]) -> Tensor:
    """(B, C, h, w) on another grid, bilinearly."""
    return F.interpolate(maps, side, mode="bilinear", antialias=True)


class Reconstructing(OfPictures):
    """The image tokenizer's own losses, and those that its configuration asks for beside them.

    `features` is a JanusVisionModel or None. Raises TokenizerError where it is None and some loss asks for it.
    """

    def __init__(self, tokenizer: ImageTokenizer, features: nn.Module | None = None):
        super().__init__()
        self.tokenizer = tokenizer
        self.wanted = tokenizer.config.losses if isinstance(tokenizer.config, OwnTokenizer) else ()
        kinds = [each.kind for each in self.wanted]
        if len(set(kinds)) < len(kinds):
            raise TokenizerError(f"the image tokenizer's losses are {', '.join(kinds)}; name each once")
        asking = [each.kind for each in self.wanted if isinstance(each, config.OfFeatures)]
        if asking and features is None:
            raise TokenizerError(f"the image tokenizer's losses {', '.join(asking)} ask for features, and there are "
                                 "none; set features, and a stage Contrast before where they are fresh")
        self.looks_again = "perceptual" in kinds or "gram" in kinds
        # In a tuple, where torch does not find it.
        self.features = (features.eval().requires_grad_(False),) if asking else ()
        self.learned = nn.ModuleDict()
        for each in self.wanted:
            match each:
                case config.Adversarial():
                    self.learned[each.kind] = AdversarialLoss(each)
                case config.Contrastive():
                    self.learned[each.kind] = Captions(tokenizer.dim)
                case config.Distill():
                    self.learned[each.kind] = DistillLoss(tokenizer.dim, features.config.hidden_size, tokenizer.grid)

    def _hidden(self, images: Tensor) -> Hidden:
        hidden = self.features[0].to(images.device)(images, output_hidden_states=True)
        return *hidden.hidden_states[1:-1], hidden.last_hidden_state

    def losses(self, images, texts):
        found = self.tokenizer(images)
        with torch.no_grad():
            target = self._hidden(images) if self.features else ()
        again = self._hidden(found.images) if self.looks_again else ()
        losses, read = dict(found.losses), self.tokenizer.expand(found.vectors) if self.wanted else None
        for each in self.wanted:
            match each:
                case config.Perceptual():
                    loss = perceptual(again, target)
                case config.Gram():
                    loss = gram(again, target)
                case config.Adversarial():
                    losses["discriminator"], loss = self.learned[each.kind](images, found.images)
                case config.Contrastive():
                    loss = self.learned[each.kind](read.mean(1), texts)
                case config.Distill():
                    loss = self.learned[each.kind](read, target[-1])
                case _:
                    assert_never(each)
            losses[each.kind] = each.weight * loss
        return losses
