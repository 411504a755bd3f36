"""Tokenizers of two views: meaning, from a feature network, and pixels, from convolutions.

    images --features--> (B, width, s, s) --meant--> semantic code --recall---> the features again
           --encoder---> (B, dim, h, w)   --------> pixel code ----+
                                          semantic code ----------+--decoder--> images

The feature network is part of the tokenizer: what it is stands in its config.json, beside the saved tokenizer. The
semantic code learns to give back the features of the network as it was at the start, which is kept where it is tuned
(TokenFlow's distillation, arXiv:2412.03069, 3.2).
"""

from copy import deepcopy
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimm.config.images import DualTokenizer
from unimm.images.base import ImageTokenizer, Reconstruction
from unimm.images.conv import Block, Decoder, Encoder, PositionNorm
from unimm.images.losses import resized
from unimm.images.quantize import VectorQuantizer


class DualImageTokenizer(ImageTokenizer):
    """One index for both views (TokenFlow, arXiv:2412.03069): semantic_weight * d_semantic + d_pixel is least.

    That sum is the squared distance of both vectors side by side, the semantic one times sqrt(semantic_weight): one
    codebook of such rows is the two codebooks, and nothing can tell their indices apart.
    """

    def __init__(self, config: DualTokenizer, features: nn.Module):
        super().__init__(config)
        self.features = _copied(features).requires_grad_(config.tune)
        self.taught = _copied(features).requires_grad_(False) if config.tune else None
        self.side = features.config.image_size // features.config.patch_size
        width, meaning = features.config.hidden_size, config.semantic.dim
        self.meant = nn.Conv2d(width, meaning, 1)
        self.recall = nn.Sequential(nn.Conv2d(meaning, config.width, 1), Block(config.width, 1),
                                    PositionNorm(config.width), nn.SiLU(), nn.Conv2d(config.width, width, 1))
        kernel, pixel = config.encoder_kernel, config.pixel.dim
        self.encoder = Encoder(config.downsample, config.width, config.blocks, kernel, pixel)
        self.decoder = Decoder(config.downsample, config.width, config.blocks, meaning + pixel)
        self._quantizers()

    def _quantizers(self) -> None:
        kind = self.config.pixel
        self.quantizer = VectorQuantizer(replace(kind, dim=kind.dim + self.config.semantic.dim))

    def _seen(self, images: Tensor, network: nn.Module | None = None) -> Tensor:
        """(B, width, side, side)"""
        with torch.set_grad_enabled(network is None and self.config.tune and torch.is_grad_enabled()):
            found = (network or self.features)(images).last_hidden_state
        return found.mT.unflatten(2, (self.side, self.side))

    def maps(self, images):
        return self._maps(self._seen(images), images)

    def _maps(self, seen: Tensor, images: Tensor) -> list[Tensor]:
        meant = resized(self.meant(seen), self.grid) * self.config.semantic_weight ** 0.5
        return [torch.cat([meant, self.encoder(images)], 1)]

    def forward(self, images: Tensor) -> Reconstruction:
        inputs, weight = self._checked(images), self.config.semantic_weight
        seen = self._seen(inputs)
        found = [quantizer(each) for quantizer, each in zip(self.quantizers, self._maps(seen, inputs))]
        vectors = self.joined([each.vectors for each in found])
        target = self._seen(inputs, self.taught) if self.taught else seen
        recalled = resized(self.recall(found[0].vectors[:, :self.config.semantic.dim]), self.side)
        semantic = (1 - F.cosine_similarity(recalled, target, dim=1)).mean()
        lost = sum([weight * each.loss for each in found[:-1]], found[-1].loss)
        losses = {"quantizer": lost, "semantic": weight * semantic}
        return self.rebuilt(images, vectors, found[-1].ids, vectors.flatten(2).mT, losses)


def _copied(features: nn.Module) -> nn.Module:
    """Not by deepcopy, which fails where tensors have no storage (`unimm plan`)."""
    made = type(features)(deepcopy(features.config))
    made.load_state_dict(features.state_dict())
    return made.eval()


class LeveledImageTokenizer(DualImageTokenizer):
    """Two levels of codes with codebooks of their own, meaning before pixels (ILLUME+, arXiv:2504.01934, 3.1)."""

    def _quantizers(self) -> None:
        self.semantic, self.quantizer = VectorQuantizer(self.config.semantic), VectorQuantizer(self.config.pixel)

    @property
    def quantizers(self):
        return [self.semantic, self.quantizer]

    @property
    def books(self):
        return {self.config.semantic_codebook: (self.semantic.size, 1)} | super().books

    def _grids(self, content):
        return [(self.side, self.side), self.grid]

    def _maps(self, seen, images):
        return [self.meant(seen), self.encoder(images)]

    def joined(self, vectors):
        return torch.cat([resized(vectors[0], self.grid), vectors[1]], 1)
