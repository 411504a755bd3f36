"""How the language model reads images: codes as rows of its own table, with their place in the image if asked for."""

import numpy as np
import torch
from torch import nn

from unimm.config.model import SharedTable
from unimm.sample import SampleError
from unimm.vocab import Vocab


class Places(nn.Embedding):
    """forward(ids (B, T), before (B,)) -> (a learned vector for a code's place in its image, zeros elsewhere
    (B, T, width), after (B,)); counts as of `ImageInput`. `is_code` bool (ids,), `begins` the ids that begin images."""

    def __init__(self, places: int, is_code: np.ndarray, begins: list[int], width: int):
        super().__init__(places, width)
        nn.init.normal_(self.weight, std=0.02)
        self.register_buffer("is_code", torch.from_numpy(is_code), persistent=False)
        self.register_buffer("is_begin", torch.zeros(len(is_code), dtype=torch.bool), persistent=False)
        self.is_begin[begins] = True

    def forward(self, ids: torch.Tensor, before: torch.Tensor | None = None):
        code = self.is_code[ids]
        count = code.cumsum(1) + (0 if before is None else before[:, None])
        base = torch.where(self.is_begin[ids], count, 0).cummax(1).values
        place = (count - base - 1).clamp(0, self.num_embeddings - 1)  # read only where there is a code
        return super().forward(place) * code[..., None], (count - base)[:, -1]


class ImageInput(nn.Module):
    """forward(table, ids (B, T), before (B,), slots) -> (what the backbone reads (B, T, width), after (B,)).

    `before` and `after` count the codes since the last image began, so that a row can be read in pieces; `counts` says
    whether that matters.
    """

    def __init__(self, config: SharedTable, vocab: Vocab, begins: list[int], width: int):
        super().__init__()
        self.counts = config.places > 0
        self.places = Places(config.places, vocab.is_code, begins, width) if config.places else None

    def forward(self, table: nn.Module, ids: torch.Tensor, before: torch.Tensor | None = None, slots=(),
                written=None):
        if slots:
            raise SampleError(f"a shared table reads codes alone, but a sample holds {slots[0][1].space!r}; set "
                              "image_in to what reads that")
        if self.places is None:
            return table(ids), before
        vectors, after = self.places(ids, before)
        return table(ids) + vectors, after
