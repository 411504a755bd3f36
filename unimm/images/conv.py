"""The convolutional encoder and decoder: patches in, residual blocks on the grid of codes, patches out.

    pixels (B, 3, H, W) --Encoder--> z (B, C, h, w) --quantizer--> vectors (B, C, h, w) --Decoder--> (B, 3, H, W)

Everything but the first and last layer works at the grid's resolution. At equal CPU time that beat
VQGAN's pyramid of resolutions, on shapes (33.6 against 27.2 dB after 16 s) and on emoji (20.9 against
19.9 dB after 40 s), both 32 x 32 in 16 codes and of 0.84 M parameters: large maps cost most and add least.
"""

from torch import Tensor, nn

from unimm.config.images import ConvTokenizer
from unimm.images.base import ImageTokenizer
from unimm.images.quantize import build_quantizer


class PositionNorm(nn.LayerNorm):
    """Normalises the channels of each position alone: a group norm would let every patch see all others."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Residual block that starts as the identity."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.body = nn.Sequential(
            PositionNorm(width), nn.SiLU(), nn.Conv2d(width, width, kernel, padding=kernel // 2),
            PositionNorm(width), nn.SiLU(), nn.Conv2d(width, width, kernel, padding=kernel // 2))
        nn.init.zeros_(self.body[-1].weight)
        nn.init.zeros_(self.body[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Encoder(nn.Sequential):
    """(B, 3, h * patch, w * patch) -> (B, dim, h, w). With kernel 1 a position sees its own patch alone."""

    def __init__(self, patch: int, width: int, blocks: int, kernel: int, dim: int):
        super().__init__(
            nn.Conv2d(3, width, patch, stride=patch), *(Block(width, kernel) for _ in range(blocks)),
            PositionNorm(width), nn.SiLU(), nn.Conv2d(width, dim, 1))


class Decoder(nn.Sequential):
    """(B, dim, h, w) -> (B, 3, h * patch, w * patch). Always sees neighbours, so that edges meet across patches."""

    def __init__(self, patch: int, width: int, blocks: int, dim: int):
        super().__init__(
            nn.Conv2d(dim, width, 3, padding=1), *(Block(width, 3) for _ in range(blocks)),
            PositionNorm(width), nn.SiLU(), nn.Conv2d(width, 3 * patch * patch, 3, padding=1), nn.PixelShuffle(patch))


class ConvImageTokenizer(ImageTokenizer):
    """Encoder, quantizer, decoder for square images of one size, or of any."""

    def __init__(self, config: ConvTokenizer):
        super().__init__(config)
        self.any_size = config.any_size
        self.quantizer = build_quantizer(config.quantizer)
        self.encoder = Encoder(config.downsample, config.width, config.blocks, config.encoder_kernel, self.dim)
        self.decoder = Decoder(config.downsample, config.width, config.blocks, self.dim)
