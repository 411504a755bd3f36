"""How the language model reads images: what turns ids and slots into embeddings.

    ImageInput    codes as rows of its own table, with their place in the image if asked for (Liquid, Emu3)
    VisionInput   pixels --vision--> features --aligner--> what it reads where an image is to be understood
                  codes --codes--> vectors --code_aligner--> what it reads where one is being written (Janus,
                  Wu et al. 2024; names are those of transformers' JanusVisionModel and its two aligners)
    VectorInput   the image tokenizer's own vectors: of codes (VILA-U, TokenFlow, ETT), of latents (Ming)
                  codes   --tokenizer.vectors_of-->  vectors  --aligner-->  what it reads
                  latents --tokenizer.expand------>  vectors  --aligner-->  what it reads
                  pixels  --tokenizer, in the step-> vectors  --aligner-->  what it reads, with the gradient of both
"""

from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from unimm.sample import SampleError, Slot
from unimm.vocab import Range


class Places(nn.Embedding):
    """forward(ids (B, T), before (B,)) -> (a learned vector for a code's place in its image, zeros elsewhere
    (B, T, width), after (B,)); counts as of `ImageInput`. `is_code` bool (ids,), `begins` the ids that begin images."""

    def __init__(self, places: int, is_code: np.ndarray, begins: list[int], width: int):
        super().__init__(places, width)
        nn.init.normal_(self.weight, std=0.02)
        self.register_buffer("is_code", torch.from_numpy(is_code), persistent=False)
        self.register_buffer("is_begin", torch.zeros(len(is_code), dtype=torch.bool), persistent=False)
        self.is_begin[begins] = True

    def forward(self, ids: Tensor, before: Tensor | None = None):
        code = self.is_code[ids]
        count = code.cumsum(1) + (0 if before is None else before[:, None])
        base = torch.where(self.is_begin[ids], count, 0).cummax(1).values
        place = (count - base - 1).clamp(0, self.num_embeddings - 1)  # read only where there is a code
        return super().forward(place) * code[..., None], (count - base)[:, -1]


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


class ImageInput(nn.Module):
    """forward(table, ids (B, T), before (B,), slots, written) -> (what the backbone reads (B, T, width), after (B,)).

    `before` and `after` count the codes since the last image began, so that a row can be read in pieces; `counts` says
    whether that matters. This one reads codes as rows of the table; the others differ in `read`.
    """

    def __init__(self, places: Places | None = None):
        super().__init__()
        self.places, self.counts = places, places is not None

    def forward(self, table: nn.Module, ids: Tensor, before: Tensor | None = None, slots: Slots = (),
                written: Written | None = None) -> tuple[Tensor, Tensor | None]:
        embedded = self.read(table, ids, slots, written)
        if self.places is None:
            return embedded, before
        vectors, after = self.places(ids, before)
        return embedded + vectors.to(embedded.dtype), after

    def read(self, table: nn.Module, ids: Tensor, slots: Slots, written: Written | None) -> Tensor:
        """(B, T, width) without places."""
        if slots:
            raise SampleError(f"a shared table reads codes alone, but here is {slots[0][1].space!r}; change image_in")
        return table(ids)


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


def pictures(slots: Slots, side: int, aligner: Aligner) -> Tensor:
    """The slots' uint8 pixels in [-1, 1], (N, 3, H, W) where the aligner is.

    A rank whose rows show no picture looks at a blank one: every rank runs every module.
    """
    pixels = [slot.payload for _, slot in slots] or [np.zeros((side, side, 3), np.uint8)]
    return torch.from_numpy(np.stack(pixels)).to(aligner.fc1.weight.device).permute(0, 3, 1, 2).float() / 127.5 - 1


class VisionInput(ImageInput):
    """Pictures through an encoder; codes as rows of the backbone's table, or of one of their own.

    vision   uint8 pixels (image, image, 3) of a slot in `space`, scaled to [-1, 1] -> (positions, channels)
    codes    ids of `written`, which lie above the rows of the backbone's own table; None: all are rows of that

    A slot may also hold features, float32 (length, channels), which then skip the encoder.
    """

    def __init__(self, vision: nn.Module, space: str, image: int, written: Range | None, dim: int, depth: int,
                 width: int):
        super().__init__()
        self.vision = vision
        self.aligner = Aligner(vision.config.hidden_size, width, depth)
        self.space, self.image, self.start = space, image, None if written is None else written.start
        if written is not None:
            self.codes = nn.Embedding(written.codes, dim)
            self.code_aligner = Aligner(dim, width, depth)

    def read(self, table: nn.Module, ids: Tensor, slots: Slots, written: Written | None) -> Tensor:
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
        return embedded

    def features(self, seen: Slots) -> Tensor:
        """What the encoder makes of the slots' pixels, (images, positions, channels)."""
        return self.vision(pictures(seen, self.image, self.aligner)).last_hidden_state


class VectorInput(ImageInput):
    """Where a position has one code its id says which; where it has several, or a latent, a slot does, or in sampling
    `written`. The tokenizer is frozen but where a stage lets it learn. A slot may also hold vectors that are to be read
    as they are, float (length, dim) with a graph.
    """

    def __init__(self, places: Places | None, tokenizer: nn.Module, space: Range, continuous: bool, depth: int,
                 width: int):
        super().__init__(places)
        self.tokenizer = tokenizer.requires_grad_(False)
        self.aligner = Aligner(tokenizer.dim, width, depth)
        self.start, self.stop, self.plain = space.start, space.stop, space.depth == 1 and not continuous

    def read(self, table: nn.Module, ids: Tensor, slots: Slots, written: Written | None) -> Tensor:
        own = (ids >= self.start) & (ids < self.stop)
        embedded = table(ids.masked_fill(own, 0))  # the ids of several codes are no rows of the table
        if self.plain:  # everywhere, and read where there is a code: no GPU is waited for
            vectors = self.tokenizer.vectors_of((ids - self.start).clamp(0, self.stop - self.start - 1))
            embedded = torch.where(own[..., None], self._aligned(vectors).to(embedded.dtype), embedded)
        elif written is not None:
            rows = torch.arange(len(written.last), device=written.last.device)
            last = self._aligned(self._vectors(written.values)[rows, written.last]).to(embedded.dtype)
            own[:, 1:] = False
            embedded = torch.where(own[..., None], last[:, None], embedded)
        if slots:
            read = torch.cat([self._of(list(some)) for _, some in groupby(slots, lambda each: each[1].length)])
            embedded = placed(embedded, slots, self._aligned(read))
        elif self.training and not self.plain:  # every rank runs every module
            embedded = placed(embedded, (), self._aligned(ids.new_zeros(1, self.aligner.fc1.in_features)))
        return embedded

    def _aligned(self, vectors: Tensor) -> Tensor:
        return self.aligner(vectors.to(self.aligner.fc1.weight.dtype))

    def _vectors(self, values: Tensor) -> Tensor:
        """(n, length, dim) of latents (n, length, channels) or codes (n, length, depth)."""
        return self.tokenizer.expand(values) if values.is_floating_point() else self.tokenizer.vectors_of(values.long())

    def _of(self, slots: list) -> Tensor:
        """The vectors (positions, dim) of slots of one length."""
        payloads = [slot.payload for _, slot in slots]
        if isinstance(payloads[0], Tensor):
            return torch.cat(payloads)
        return self._vectors(torch.from_numpy(np.stack(payloads)).to(self.aligner.fc1.weight.device)).flatten(0, 1)

    def encoded(self, slots: Slots) -> tuple[Slots, Tensor]:
        """The slots with pixels as vectors, which the gradient goes through, and the tokenizer's own loss of them, ().
        """
        seen = [each for each in slots if getattr(each[1].payload, "dtype", None) == np.uint8]
        found = self.tokenizer(pictures(seen, self.tokenizer.config.image, self.aligner))
        made = tuple((row, replace(slot, payload=vectors)) for (row, slot), vectors in zip(seen, found.vectors))
        left = tuple(each for each in slots if not any(each is other for other in seen))
        return left + made, found.loss if seen else 0.0 * (found.loss + found.vectors.sum())
