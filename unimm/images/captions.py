"""Pictures and their captions find each other: a small text side of ours, and the sigmoid loss of SigLIP."""

import math
import re
from itertools import pairwise
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        number = {text: n for n, text in enumerate(dict.fromkeys(texts))}
        same = torch.tensor([number[text] for text in texts])
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
