"""How a language model reads the image tokenizer's own vectors: of codes (VILA-U, TokenFlow, ETT), of latents (Ming).

    codes    --tokenizer.vectors_of-->  vectors  --aligner-->  what it reads
    latents  --tokenizer.expand------>  vectors  --aligner-->  what it reads
    pixels   --tokenizer, in the step-> vectors  --aligner-->  what it reads, with the gradient of both
"""

from dataclasses import replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn

from unimm.model.image_input import Places
from unimm.model.vision_input import Aligner, Slots, Written, placed
from unimm.vocab import Range


class VectorInput(nn.Module):
    """forward(table, ids (B, T), before, slots, written) -> (what the backbone reads (B, T, width), before).

    Where a position has one code its id says which; where it has several, or a latent, a slot does, or in sampling
    `written`. The tokenizer is frozen but where a stage lets it learn. A slot may also hold vectors that are to be read
    as they are, float (length, dim) with a graph.
    """

    def __init__(self, tokenizer: nn.Module, space: Range, continuous: bool, width: int, depth: int,
                 places: Places | None = None):
        super().__init__()
        self.places, self.counts = places, places is not None
        self.tokenizer = tokenizer.requires_grad_(False)
        self.aligner = Aligner(tokenizer.vector_dim, width, depth)
        self.start, self.stop, self.plain = space.start, space.stop, space.depth == 1 and not continuous

    def forward(self, table: nn.Module, ids: Tensor, before: Tensor | None = None, slots: Slots = (),
                written: Written | None = None):
        own = (ids >= self.start) & (ids < self.stop)
        embedded = table(ids.masked_fill(own, 0))  # the ids of several codes are no rows of the table
        if self.plain:  # everywhere, and read where there is a code: no GPU is waited for
            vectors = self.tokenizer.vectors_of((ids - self.start).clamp(0, self.stop - self.start - 1))
            embedded = torch.where(own[..., None], self._aligned(vectors).to(embedded.dtype), embedded)
        elif written is not None:
            last = self._aligned(self._vectors(written)).to(embedded.dtype)
            own[:, 1:] = False
            embedded = torch.where(own[..., None], last[:, None], embedded)
        if slots:
            read = torch.cat([self._of(list(some)) for _, some in groupby(slots, lambda each: each[1].length)])
            embedded = placed(embedded, slots, self._aligned(read))
        elif self.training and not self.plain:  # every rank runs every module
            embedded = placed(embedded, (), self._aligned(ids.new_zeros(1, self.aligner.fc1.in_features)))
        if self.places is None:
            return embedded, before
        vectors, after = self.places(ids, before)
        return embedded + vectors.to(embedded.dtype), after

    def _aligned(self, vectors: Tensor) -> Tensor:
        return self.aligner(vectors.to(self.aligner.fc1.weight.dtype))

    def _vectors(self, written: Written) -> Tensor:
        """Of the last that each row has written, (B, dim)."""
        rows = torch.arange(len(written.last), device=written.last.device)
        if written.values.is_floating_point():
            return self.tokenizer.expand(written.values)[rows, written.last]
        return self.tokenizer.vectors_of(written.values[:, 0])

    def _of(self, slots: list) -> Tensor:
        """The vectors (positions, dim) of slots of one length."""
        payloads = [slot.payload for _, slot in slots]
        if isinstance(payloads[0], Tensor):
            return torch.cat(payloads)
        values = torch.from_numpy(np.stack(payloads)).to(self.aligner.fc1.weight.device)
        if values.is_floating_point():
            return self.tokenizer.expand(values).flatten(0, 1)
        return self.tokenizer.vectors_of(values.long()).flatten(0, 1)

    def encoded(self, slots: Slots) -> tuple[Slots, Tensor]:
        """The slots with pixels as vectors, which the gradient goes through, and the tokenizer's own loss of them, ().

        A rank whose rows show no picture looks at a blank one: every rank runs every module.
        """
        seen = [each for each in slots if getattr(each[1].payload, "dtype", None) == np.uint8]
        pixels = [slot.payload for _, slot in seen] or [np.zeros((*self.tokenizer.image_size, 3), np.uint8)]
        images = torch.from_numpy(np.stack(pixels)).to(self.aligner.fc1.weight.device)
        found = self.tokenizer(images.permute(0, 3, 1, 2).float() / 127.5 - 1)
        made = tuple((row, replace(slot, payload=vectors)) for (row, slot), vectors in zip(seen, found.vectors))
        left = tuple(each for each in slots if not any(each is other for other in seen))
        blank = 0.0 * found.vectors.sum() if not seen else 0.0
        return left + made, found.loss * bool(seen) + blank
