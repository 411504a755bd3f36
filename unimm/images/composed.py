"""Several codes a position: quantizers made of others."""

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimm.images.quantizer import Nearest, Quantizer


class ResidualQuantizer(Quantizer):
    """`depth` codes out of one codebook, each the nearest to what those before it left over; their vectors add up
    (Lee et al. 2022, RQ-VAE, 3.1). The codebook learns from what is left over at every depth, and the loss is that of
    all depths, each against what was left for it (eq. 7), their mean."""

    def __init__(self, of: Nearest, depth: int):
        super().__init__(of.size, of.dim)
        self.of, self.depth = of, depth

    def _ids(self, rows):
        found = []
        for _ in range(self.depth):
            found.append(self.of._ids(rows))
            rows = rows - self.of.codes_to_vectors(found[-1])
        return torch.stack(found, -1)

    def codes_to_vectors(self, ids):
        each = self.of.codes_to_vectors(ids).unbind(-2)
        return sum(each[1:], each[0])  # one after the other, so that no shape of ids rounds otherwise

    def _start(self, rows):
        self.of._start(rows)

    def _learn(self, rows, ids, vectors):
        each = self.of.codes_to_vectors(ids)  # (N, depth, C)
        left = rows[:, None] - (each.cumsum(1) - each)
        return self.of._learn(left.flatten(0, 1), ids.flatten(), each.flatten(0, 1))


class ProductQuantizer(Quantizer):
    """Codebooks side by side, each with its share of the channels (Bai et al. 2024, FQGAN, 3.1)."""

    def __init__(self, parts: list[Nearest], disentangle: float):
        super().__init__(parts[0].size, sum(part.dim for part in parts))
        self.parts = nn.ModuleList(parts)
        self.depth, self.disentangle = len(parts), disentangle

    def _shares(self, rows: Tensor):
        return zip(self.parts, rows.chunk(self.depth, dim=-1))

    def _ids(self, rows):
        return torch.stack([part._ids(share) for part, share in self._shares(rows)], -1)

    def codes_to_vectors(self, ids):
        return torch.cat([part.codes_to_vectors(some) for part, some in zip(self.parts, ids.unbind(-1))], -1)

    def _start(self, rows):
        for part, share in self._shares(rows):
            part._start(share)

    def _learn(self, rows, ids, vectors):
        each = vectors.chunk(self.depth, dim=-1)
        losses = [part._learn(share, some, own)
                  for (part, share), some, own in zip(self._shares(rows), ids.unbind(-1), each)]
        # The codebooks are averages, so what is to point elsewhere is what the encoder puts into them.
        alike = [F.cosine_similarity(a, b, dim=-1).square().mean()
                 for a, b in combinations(self._through(rows, vectors).chunk(self.depth, dim=-1), 2)]
        return sum(losses) / self.depth + self.disentangle * sum(alike) / len(alike)
