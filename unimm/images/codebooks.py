"""The codebooks of the published VQGANs: learned vectors, and three rules of which one stands for a place.

    Codebook               the nearest (Chameleon, MoVQ, Emu3)
    UnitCodebook           the one of the smallest angle (LlamaGen, Janus)
    IndexBackpropagation   the one of the largest inner product (IBQ, Emu3.5)
"""

import torch
import torch.nn.functional as F
from torch import nn

from unimm.images.quantizer import Nearest


class Codebook(Nearest):
    """The nearest of `size` learned vectors. Trained by its own loss alone, as in VQGAN: 1 part for the code,
    0.25 parts for the encoder's output."""

    def __init__(self, size: int, dim: int):
        super().__init__(size, dim)
        self.embedding = nn.Embedding(size, dim)
        nn.init.uniform_(self.embedding.weight, -1 / size, 1 / size)

    def table(self):
        return self.embedding.weight.float()

    def _learn(self, rows, ids, vectors):
        return F.mse_loss(F.embedding(ids, self.table()), rows.detach()) + 0.25 * F.mse_loss(rows, vectors)


class UnitCodebook(Codebook):
    """Codes and what is coded are scaled to length 1: the nearest code is that of the smallest angle.

    transformers' JanusVQVAE.encode does not normalise as the release does: it takes the nearest code by plain
    distance, so its ids are the release's only where the stored codes are unit vectors already. Its decode
    normalises. Here the release's rule holds for both.
    """

    def table(self):
        return F.normalize(super().table(), dim=-1)

    def settled(self, rows):
        return F.normalize(rows, dim=-1)


class IndexBackpropagation(Codebook):
    """The code of the largest inner product (Shi et al. 2024). In training the choice itself carries a gradient: what
    passes through is the mean of all codes under the softmax, so that every code learns at every step.

    The loss is the release's; codes that are sure and all used are rewarded where `entropy_weight` is above 0 (4.1).
    """

    def __init__(self, size: int, dim: int, commitment: float = 0.25, entropy_weight: float = 0.0):
        super().__init__(size, dim)
        self.commitment, self.entropy_weight = commitment, entropy_weight

    def _far(self, rows, table):
        return -rows @ table.T

    def codes_to_vectors(self, ids):
        return F.embedding(ids, self.table())

    def _through(self, rows, vectors):
        if self.training and torch.is_grad_enabled():
            rows = F.softmax(rows @ self.table().T, dim=1) @ self.table().detach()
        return super()._through(rows, vectors)

    def _learn(self, rows, ids, vectors):
        loss = (F.mse_loss(self._through(rows, vectors), rows) + F.mse_loss(rows, vectors.detach())
                + self.commitment * F.mse_loss(vectors, rows.detach()))
        if self.entropy_weight:
            p, entropy = F.softmax(rows @ self.table().T, dim=1), torch.special.entr
            loss = loss + self.entropy_weight * (entropy(p).sum(1).mean() - entropy(p.mean(0)).sum())
        return loss
