"""What every quantizer is: feature maps to codes. One call and two inverses, the same for every kind.

    z (B, C, h, w) --forward--> Quantized(vectors (B, C, h, w), ids (B, P), loss)
    z              --ids_of---> ids int64 (B, P), P = h * w, row by row; never trains anything
    ids (..., P)   --codes_to_vectors--> float32 (..., P, C)

Where a position has several codes, ids are (..., P, depth).
`vectors` equals `codes_to_vectors(ids)` bit for bit, and its gradient goes straight through to z.
Everything is computed in float32, whatever z is.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DISTANCES = 2**26
"""Distances to codes held at a time: 256 MB. 131,072 codes by the 4,096 positions of one image would take 2 GB."""


class Quantized(NamedTuple):
    """vectors (B, C, h, w) of z's dtype; ids int64 (B, P), or (B, P, depth) where a position has several, or None where
    nothing is rounded; loss float32 () to be added to the training loss."""

    vectors: Tensor
    ids: Tensor | None
    loss: Tensor


class Quantizer(nn.Module):
    """What the kinds share. Each has `size` codes of `dim` channels and defines the methods that raise here.

    Rows are z as float32 (N, C), N = B * h * w, brought to where the codes are by `settled`.
    """

    depth = 1
    """Codes a position; 0 where it has none, its vector being what is kept."""

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.size, self.dim = size, dim

    def settled(self, rows: Tensor) -> Tensor:
        """Rows as the kind compares them with its codes: squashed, or of length 1. Gradients pass through this."""
        return rows

    def _ids(self, rows: Tensor) -> Tensor:
        """-> int64 (N,) or (N, depth)"""
        raise NotImplementedError

    def codes_to_vectors(self, ids: Tensor) -> Tensor:
        """int64 (...) or (..., depth) -> float32 (..., C)"""
        raise NotImplementedError

    def _learn(self, rows: Tensor, ids: Tensor, vectors: Tensor) -> Tensor:
        """In training: update averages from what was just coded, return the loss (), here nothing."""
        return rows.new_zeros(())

    def _through(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """The vectors, with the gradient of what they stand for."""
        # Not rows + (vectors - rows): rounding would make training see other vectors than decoding does.
        return vectors + (rows - rows.detach())

    def _start(self, rows: Tensor) -> None:
        """In training, before coding: initialise from data where the kind does."""

    def ids_of(self, z: Tensor) -> Tensor:
        return by_image(self._ids(self.settled(rows_of(z))), len(z))

    def forward(self, z: Tensor) -> Quantized:
        rows = self.settled(rows_of(z))
        if self.training:
            self._start(rows.detach())
        ids = self._ids(rows.detach())
        vectors = self.codes_to_vectors(ids)
        loss = self._learn(rows, ids, vectors) if self.training else rows.new_zeros(())
        vectors = self._through(rows, vectors)
        b, c, h, w = z.shape
        return Quantized(vectors.view(b, h, w, c).permute(0, 3, 1, 2).to(z.dtype), by_image(ids, b), loss)


def rows_of(z: Tensor) -> Tensor:
    """(B, C, h, w) -> float32 (B * h * w, C)"""
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]).float()


def by_image(ids: Tensor, images: int) -> Tensor:
    """(N,) or (N, depth) -> (B, P) or (B, P, depth)"""
    return ids.view(images, -1, *ids.shape[1:])


class Nearest(Quantizer):
    """The nearest of the vectors of a table."""

    def table(self) -> Tensor:
        """Every code's vector, float32 (size, dim)."""
        raise NotImplementedError

    def _far(self, rows: Tensor, table: Tensor) -> Tensor:
        """What is least for the code of each row, (N, size)."""
        # |row - e|^2 without |row|^2, which is the same for every code
        return table.square().sum(1) - 2 * rows @ table.T

    @torch.no_grad()
    def _ids(self, rows):
        table = self.table()
        with torch.autocast(rows.device.type, enabled=False):
            some = rows.split(max(1, DISTANCES // self.size))
            return torch.cat([self._far(part, table).argmin(1) for part in some])

    def codes_to_vectors(self, ids):
        return F.embedding(ids, self.table().detach())
