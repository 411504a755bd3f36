"""How a language model reads features and writes codes of a table of their own: Janus (Wu et al. 2024).

    pixels --vision--> features --aligner--> what it reads where an image is to be understood
    codes  --codes---> vectors  --code_aligner--> what it reads where an image is being written

Modules and their parameters have the names of transformers' JanusVisionModel and its two aligners.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from unimm.sample import Slot
from unimm.vocab import Range

Slots = tuple[tuple[int, Slot], ...]


class Written(NamedTuple):
    """What rows have drawn of their images where an id does not say it: values (B, kept, depth or channels), and the
    index `last` int64 (B,) of the one that stands at the first id which is now read."""

    values: Tensor
    last: Tensor


def placed(embedded: Tensor, slots: Slots, read: Tensor) -> Tensor:
    """`read` (positions, width), in order of the slots, at their positions; what belongs to none leaves zeros behind in
    the graph."""
    read = read.flatten(0, -2).to(embedded.dtype)
    if not slots:
        return embedded + 0.0 * read.sum()
    rows = np.concatenate([np.full(slot.length, row) for row, slot in slots])
    columns = np.concatenate([np.arange(slot.start, slot.start + slot.length) for _, slot in slots])
    where = tuple(torch.from_numpy(at).to(embedded.device) for at in (rows, columns))
    return embedded.index_put(where, read)


class Aligner(nn.Module):
    """`depth` linear layers with GELU between: (..., inputs) -> (..., width)."""

    def __init__(self, inputs: int, width: int, depth: int):
        super().__init__()
        self.fc1 = nn.Linear(inputs, width)
        self.hidden_layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        for layer in self.hidden_layers:
            x = layer(nn.functional.gelu(x))
        return x


class VisionInput(nn.Module):
    """forward(table, ids (B, T), before, slots) -> (what the backbone reads (B, T, width), before).

    vision   uint8 pixels (image, image, 3) of a slot in `space`, scaled to [-1, 1] -> (positions, channels)
    codes    ids of `written`, which lie above the rows of the backbone's own table; None: all are rows of that

    A slot may also hold features, float32 (length, channels), which then skip the encoder.
    """

    counts = False

    def __init__(self, vision: nn.Module, space: str, image: int, written: Range | None, dim: int, depth: int,
                 width: int):
        super().__init__()
        self.vision = vision
        self.aligner = Aligner(vision.config.hidden_size, width, depth)
        self.space, self.image, self.start = space, image, None if written is None else written.start
        if written is not None:
            self.codes = nn.Embedding(written.codes, dim)
            self.code_aligner = Aligner(dim, width, depth)

    def forward(self, table: nn.Module, ids: Tensor, before: Tensor | None = None, slots: Slots = (), written=None):
        if self.start is None:
            embedded = table(ids)
        else:
            own = ids >= self.start
            # Everywhere, and read where there is a code: no rank skips a module, and no GPU is waited for.
            vectors = self.code_aligner(self.codes((ids - self.start).clamp_min(0)))
            embedded = table(ids.masked_fill(own, 0))
            embedded = torch.where(own[..., None], vectors.to(embedded.dtype), embedded)
        read = [(row, slot) for row, slot in slots if slot.space == self.space]
        seen = [each for each in read if each[1].payload.dtype == np.uint8]
        given = [each for each in read if each[1].payload.dtype != np.uint8]
        if seen or self.training:
            embedded = placed(embedded, seen, self.aligner(self.features(seen)))
        if given:
            features = torch.from_numpy(np.concatenate([slot.payload for _, slot in given])).to(ids.device)
            embedded = placed(embedded, given, self.aligner(features))
        return embedded, before

    def features(self, seen: Slots) -> Tensor:
        """What the encoder makes of the slots' pixels, (images, positions, channels).

        A rank whose rows show no picture looks at a blank one: every rank runs every module.
        """
        pixels = [slot.payload for _, slot in seen] or [np.zeros((self.image, self.image, 3), np.uint8)]
        images = torch.from_numpy(np.stack(pixels)).to(self.aligner.fc1.weight.device)
        return self.vision(images.permute(0, 3, 1, 2).float() / 127.5 - 1).last_hidden_state

