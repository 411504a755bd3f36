"""The VQGAN that the published tokenizers vary (Esser et al. 2021): a pyramid of convolutions around a codebook.

    image (B, 3, H, W) --Encoder, quant_conv--> z (B, dim, h, w) --quantize--> vectors (B, dim, h, w)
                       <--Decoder, post_quant_conv--

Modules are named as in the releases (CompVis/taming-transformers, taming/modules/diffusionmodules/model.py, and
those who kept to it), so that a release's weights load by their own names. `context` (B, dim, h, w) are the
codes' vectors where the decoder's norms read them (MoVQ, Emu3), or None.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from unimm.config.images import Published
from unimm.images.base import ImageTokenizer, TokenizerError
from unimm.images.quantize import Nearest, Quantizer

Spelling = Callable[[str], str]
"""A release's name of one of our tensors."""


class PlainNorm(nn.GroupNorm):
    """32 groups, blind to the codes."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(x)


class SpatialNorm(nn.Module):
    """A group norm whose scale and shift at each place come from the code's vector there (Zheng et al. 2022, MoVQ)."""

    def __init__(self, channels: int, context: int):
        super().__init__()
        self.norm_layer = nn.GroupNorm(32, channels, eps=1e-6)
        self.conv_y = nn.Conv2d(context, channels, 1)
        self.conv_b = nn.Conv2d(context, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        # The releases enlarge first; a convolution of one pixel gives the same either way, here on h * w places.
        scale, shift = (F.interpolate(conv(context), size=x.shape[-2:]) for conv in (self.conv_y, self.conv_b))
        return self.norm_layer(x) * scale + shift


def norm(channels: int, context: int) -> nn.Module:
    return SpatialNorm(channels, context) if context else PlainNorm(32, channels, eps=1e-6)


class Residual(nn.Module):
    def __init__(self, before: int, after: int, context: int = 0):
        super().__init__()
        self.norm1 = norm(before, context)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm2 = norm(after, context)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x, context)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h, context)))


class Attention(nn.Module):
    """One head over all places."""

    def __init__(self, channels: int, context: int = 0):
        super().__init__()
        self.norm = norm(channels, context)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = self.norm(x, context)
        q, k, v = (conv(h).flatten(2).transpose(1, 2)[:, None] for conv in (self.q, self.k, self.v))  # (B, 1, hw, C)
        found = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(found[:, 0].transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0))


class Level(nn.Module):
    """Residual blocks of one resolution, attention after each where the level has it, then the way to the next."""

    def __init__(self, before: int, after: int, blocks: int, attention: bool, context: int = 0):
        super().__init__()
        self.block = nn.ModuleList(Residual(after if i else before, after, context) for i in range(blocks))
        self.attn = nn.ModuleList(Attention(after, context) for _ in range(blocks * attention))
        self.downsample = self.upsample = nn.Identity()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x, context)
            if self.attn:
                x = self.attn[i](x, context)
        return self.upsample(self.downsample(x))


class Middle(nn.Module):
    def __init__(self, channels: int, context: int = 0):
        super().__init__()
        self.block_1 = Residual(channels, channels, context)
        self.attn_1 = Attention(channels, context)
        self.block_2 = Residual(channels, channels, context)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x, context), context), context)


class Encoder(nn.Module):
    """(B, 3, H, W) -> (B, latent, h, w)"""

    def __init__(self, config: Published):
        super().__init__()
        widths = [config.width * m for m in (1, *config.multipliers)]
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList(Level(a, b, config.blocks, n in config.attention)
                                  for n, (a, b) in enumerate(zip(widths, widths[1:])))
        for level, width in zip(self.down[:-1], widths[1:]):
            level.downsample = Downsample(width)
        self.mid = Middle(widths[-1])
        self.norm_out = PlainNorm(32, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.latent, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """(B, latent, h, w) -> (B, 3, H, W); `up` counts levels as the encoder does, so it is run from its end."""

    def __init__(self, config: Published, context: int = 0):
        super().__init__()
        widths = [config.width * m for m in config.multipliers]
        self.conv_in = nn.Conv2d(config.latent, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], context)
        self.up = nn.ModuleList(Level(before, after, config.blocks + 1, n in config.attention, context)
                                for n, (before, after) in enumerate(zip([*widths[1:], widths[-1]], widths)))
        for level, width in zip(self.up[1:], widths[1:]):
            level.upsample = Upsample(width)
        self.norm_out = norm(widths[0], context)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        x = self.mid(self.conv_in(z), context)
        for level in reversed(self.up):
            x = level(x, context)
        return self.conv_out(F.silu(self.norm_out(x, context)))


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


class VQGAN(ImageTokenizer):
    """Encoder, codebook, decoder. An architecture changes a part and says how its releases spell the names.

    Trains by squared error and the codebook's loss, without the releases' perceptual and adversarial ones.
    """

    any_size = True
    LEFT_OUT: tuple[str, ...] = ("loss.",)
    """Beginnings of names that a release's file may hold beside the tokenizer: what only its training needed."""

    def __init__(self, config: Published, context: int = 0):
        super().__init__(config)
        self.encoder = Encoder(config)
        self.quantize: Quantizer = Codebook(config.size, config.dim)
        self.quant_conv = nn.Conv2d(config.latent, config.dim, 1)
        self.post_quant_conv = nn.Conv2d(config.dim, config.latent, 1)
        self.decoder: nn.Module | None = Decoder(config, context)

    @property
    def quantizer(self) -> Quantizer:
        """By the name that it has elsewhere; `quantize` is the releases'."""
        return self.quantize

    def spellings(self) -> tuple[Spelling, ...]:
        """How releases name our tensors, the preferred one first."""
        return (str,)

    def latents(self, images: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(images))

    def drawn(self, vectors: Tensor) -> Tensor:
        if self.decoder is None:
            raise TokenizerError("this image tokenizer was loaded without a decoder and can't draw; "
                                 "give weights that have one, and decoder=True")
        return self.decoder(self.post_quant_conv(vectors))
