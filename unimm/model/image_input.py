"""How the language model reads images: codes as rows of its own table, with their place in the image if asked for."""

import torch
from torch import nn

from unimm.config.model import SharedTable
from unimm.sample import SampleError
from unimm.vocab import Vocab


class ImageInput(nn.Module):
    """forward(table, ids (B, T), before (B,), slots) -> (what the backbone reads (B, T, width), after (B,)).

    `before` and `after` count the codes since the last image began, so that a row can be read in pieces; `counts` says
    whether that matters.
    """

    def __init__(self, config: SharedTable, vocab: Vocab, begins: list[int], width: int):
        super().__init__()
        self.register_buffer("is_code", torch.from_numpy(vocab.is_code), persistent=False)
        self.register_buffer("is_begin", torch.zeros(vocab.size, dtype=torch.bool), persistent=False)
        self.is_begin[begins] = True
        self.counts = config.places > 0
        self.places = nn.Embedding(config.places, width) if config.places else None
        if self.places is not None:
            nn.init.normal_(self.places.weight, std=0.02)

    def forward(self, table: nn.Module, ids: torch.Tensor, before: torch.Tensor | None = None, slots=(),
                written=None):
        if slots:
            raise SampleError(f"a shared table reads codes alone, but a sample holds {slots[0][1].space!r}; set "
                              "image_in to what reads that")
        if self.places is None:
            return table(ids), before
        code = self.is_code[ids]
        count = code.cumsum(1) + (0 if before is None else before[:, None])
        base = torch.where(self.is_begin[ids], count, 0).cummax(1).values
        place = (count - base - 1).clamp(0, self.places.num_embeddings - 1)  # read only where there is a code
        return table(ids) + self.places(place) * code[..., None], (count - base)[:, -1]
