"""Emu3-VisionTokenizer (Wang et al. 2024): MoVQ's layers on each frame, causal convolutions over time around the codes.

    frames (B, T, 3, H, W) --Encoder--> (B T) grids --time: T / 4--> quant_conv --> ids (B, T / 4, h, w)

An image is a video of `frames` (4) equal frames, and what is decoded of it is the first of the four. Equal frames
have equal grids, so each is computed once where the release computes four.

BAAI/Emu3-VisionTokenizer, modeling_emu3visionvq.py (read in copies; baaivision/Emu3 holds none). Sizes: transformers'
Emu3VQVAEConfig. BatchNorm's averages are the release's, also in training.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.emu3 import modeling_emu3 as emu3

from unimm.config.images import Emu3
from unimm.images.vqgan import VQGAN


class FrozenBatchNorm(nn.BatchNorm3d):
    """Always by the averages it came with: a batch of a few images would spoil them."""

    def train(self, mode: bool = True):
        return super().train(False)


def _add_time(part: nn.Module, config: Emu3, conv: type[nn.Module]) -> None:
    """Layers over (time, rows, columns), each place seeing two earlier frames and none later."""
    part.time_conv = nn.ModuleList(conv(config.latent, config.latent) for _ in range(config.frames.bit_length() - 1))
    part.time_res_stack = nn.Sequential(*(emu3.Emu3VQVAETemporalResnetBlock(config.latent, config.latent)
                                          for _ in range(config.blocks)))
    for block in part.time_res_stack:
        block.norm1, block.norm2 = FrozenBatchNorm(config.latent), FrozenBatchNorm(config.latent)


class Emu3Tokenizer(VQGAN):
    def __init__(self, config: Emu3):
        super().__init__(config)
        _add_time(self.encoder, config, emu3.Emu3VQVAETemporalDownsample)
        _add_time(self.decoder, config, emu3.Emu3VQVAETemporalUpsample)
        self.quant_conv = emu3.Emu3VQVAEConv3d(config.latent, config.dim, (3, 1, 1), (1, 1, 1))
        self.post_quant_conv = emu3.Emu3VQVAEConv3d(config.dim, config.latent, (3, 1, 1), (1, 1, 1))

    def latents(self, images: Tensor) -> Tensor:
        x = self.encoder(images)[:, :, None].expand(-1, -1, self.config.frames, -1, -1)
        for conv in self.encoder.time_conv:
            x = F.silu(conv(x))  # (B, latent, T, h, w) -> (B, latent, T / 2, h, w)
        return self.quant_conv(self.encoder.time_res_stack(x))[:, :, 0]

    def drawn(self, vectors: Tensor) -> Tensor:
        """The first frame of each video of `frames`."""
        vectors = vectors[:, :, None]
        x = self.decoder.time_res_stack(torch.cat([self.post_quant_conv(vectors), vectors]))
        for conv in self.decoder.time_conv:
            x = F.silu(conv(x))
        return self.decoder(*x[:, :, 0].chunk(2))
