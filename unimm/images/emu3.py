"""Emu3-VisionTokenizer (Wang et al. 2024): MoVQ's layers on each frame, causal convolutions over time around the codes.

    frames (B, T, 3, H, W) --Encoder--> (B T) grids --time: T / 4--> quant_conv --> ids (B, T / 4, h, w)

An image is a video of `frames` (4) equal frames, and what is decoded of it is the first of the four. Equal frames
have equal grids, so each is computed once where the release computes four.

Names: BAAI/Emu3-VisionTokenizer, modeling_emu3visionvq.py (read in copies; baaivision/Emu3 holds none).
transformers' Emu3VQVAE has other names, and linear layers in its attention, under `model.vqmodel.`. Sizes:
transformers' Emu3VQVAEConfig. BatchNorm's averages are the release's, also in training.
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimm.config.images import Emu3
from unimm.images.vqgan import VQGAN, Decoder, Encoder, Spelling


class CausalConv3d(nn.Module):
    """A convolution over (time, rows, columns) that sees two earlier frames and none later."""

    def __init__(self, before: int, after: int, kernel: tuple[int, int, int], stride: tuple[int, int, int] = (1, 1, 1)):
        super().__init__()
        self.conv = nn.Conv3d(before, after, kernel, stride)
        rows, columns = (k - s for k, s in zip(kernel[1:], stride[1:]))
        self.padding = (columns // 2 + columns % 2, columns // 2, rows // 2 + rows % 2, rows // 2, 2, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding))


class FrozenBatchNorm(nn.BatchNorm3d):
    """Always by the averages it came with: a batch of a few images would spoil them."""

    def train(self, mode: bool = True):
        return super().train(False)


class TemporalBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.norm2 = FrozenBatchNorm(channels), FrozenBatchNorm(channels)
        self.conv1, self.conv2 = (CausalConv3d(channels, channels, (3, 3, 3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class TimeConv(nn.Module):
    """One halving of time, or one doubling of it."""

    def __init__(self, channels: int, halves: bool):
        super().__init__()
        self.halves = halves
        kernel, stride = ((4, 3, 3), (2, 1, 1)) if halves else ((3, 3, 3), (1, 1, 1))
        self.conv = CausalConv3d(channels, channels, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.halves else x.repeat_interleave(2, dim=2))


def _time_layers(config: Emu3, halves: bool) -> tuple[nn.ModuleList, nn.Sequential]:
    halvings = config.frames.bit_length() - 1
    return (nn.ModuleList(TimeConv(config.latent, halves) for _ in range(halvings)),
            nn.Sequential(*(TemporalBlock(config.latent) for _ in range(config.blocks))))


class Emu3Encoder(Encoder):
    def __init__(self, config: Emu3):
        super().__init__(config)
        self.time_conv, self.time_res_stack = _time_layers(config, halves=True)

    def through_time(self, x: Tensor) -> Tensor:
        """(B, latent, T, h, w) -> (B, latent, T / frames, h, w)"""
        for conv in self.time_conv:
            x = F.silu(conv(x))
        return self.time_res_stack(x)


class Emu3Decoder(Decoder):
    def __init__(self, config: Emu3):
        super().__init__(config, context=config.dim)
        self.time_conv, self.time_res_stack = _time_layers(config, halves=False)

    def through_time(self, x: Tensor) -> Tensor:
        """(B, latent, t, h, w) -> (B, latent, t * frames, h, w)"""
        x = self.time_res_stack(x)
        for conv in self.time_conv:
            x = F.silu(conv(x))
        return x


class Emu3Tokenizer(VQGAN):
    def __init__(self, config: Emu3):
        super().__init__(config, context=config.dim)
        self.encoder = Emu3Encoder(config)
        self.decoder = Emu3Decoder(config)
        self.quant_conv = CausalConv3d(config.latent, config.dim, (3, 1, 1))
        self.post_quant_conv = CausalConv3d(config.dim, config.latent, (3, 1, 1))

    def spellings(self) -> tuple[Spelling, ...]:
        def transformers(name: str) -> str:
            name = name.replace("encoder.down.", "encoder.down_block.down.")
            name = name.replace("decoder.up.", "decoder.up_block.up.")
            name = re.sub(r"attn\.(\d+)\.norm\.", r"attn_norms.\1.", name)
            name = name.replace(".mid.attn_1.norm.", ".middle_block.attn_norm.").replace(".mid.", ".middle_block.")
            return re.sub(r"(attn(?:_1|\.\d+))\.(q|k|v|proj_out)\.",
                          lambda m: f"{m[1]}.{'out' if m[2] == 'proj_out' else m[2]}_proj.", name)

        return str, transformers

    def latents(self, images: Tensor) -> Tensor:
        frames = self.encoder(images)[:, :, None].expand(-1, -1, self.config.frames, -1, -1)
        return self.quant_conv(self.encoder.through_time(frames))[:, :, 0]

    def drawn(self, vectors: Tensor) -> Tensor:
        """The first frame of each video of `frames`."""
        vectors = vectors[:, :, None]
        both = self.decoder.through_time(torch.cat([self.post_quant_conv(vectors), vectors]))[:, :, 0]
        return self.decoder(*both.chunk(2))
