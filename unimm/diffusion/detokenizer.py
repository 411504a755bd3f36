"""A rectified flow from noise to a picture, told what the image tokenizer's own decoder would draw from.

    contents --tokenizer--> conditions (B, C, h, w) --.
    noise (B, 3, H, W) ------------------------------ network, `steps` times --> picture (B, 3, H, W), in [-1, 1]

On the straight line z = (1 - sigma) x + sigma e from noise e to a picture x the velocity is e - x (Liu et al. 2022,
arXiv:2209.03003). The network says x, and the velocity is (z - x) / sigma: x lies near few pictures and passes through
few channels, noise doesn't (Li and He 2025, arXiv:2511.13720, 3).
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimm.config.check import ConfigError
from unimm.config.model import FlowDecoder
from unimm.losses import OfPictures, pixel_errors
from unimm.sample import Content

TIMES = 1000
"""The network's unit of time: sigma 1 is time 1,000."""
MEAN, SPREAD = 0.8, 0.8
"""Of the logit of sigma in training, as Li and He chose (their t is 1 - sigma): mostly much noise, where what the
conditions say is needed most."""


class FlowDetokenizer(nn.Module):
    """Draws the pictures of contents in the place of the image tokenizer that it was trained for, `scale` times as
    large; with `check` and `pictures` as of `unimm.images.base.ImageTokenizer`.

    `tokenizer` is that one, frozen and no part of this module's weights. `channels` are those of the conditions, where
    they aren't its own but hidden states of a language model on the grid of the codes.

    Raises ConfigError where a code's pixels are no whole positions of the network.
    """

    draws = True

    def __init__(self, config: FlowDecoder, tokenizer: nn.Module, channels: int | None = None):
        from diffusers import UNet2DModel  # late: diffusers takes 3 s to import

        super().__init__()
        self.config = config
        self.__dict__["tokenizer"] = tokenizer  # past nn.Module, which would make it a part
        pixels = config.scale * tokenizer.patch
        if pixels % (2 * config.patch):
            raise ConfigError(f"FlowDecoder.patch is {config.patch}; twice that must divide the {pixels} pixels, each "
                              "way, that it draws for a code")
        if channels is None:
            blank = torch.zeros(1, 3, *[tokenizer.config.image] * 2, device=tokenizer.device)
            channels = tokenizer.conditions(tokenizer.contents(blank)).shape[1]
        cell, width, inner = pixels // config.patch, config.width, 3 * config.patch**2
        self.read = nn.Sequential(nn.Conv2d(channels, 2 * width * cell**2, 3, padding=1),
                                  nn.PixelShuffle(cell))
        self.network = UNet2DModel(
            in_channels=inner + 2 * width, out_channels=inner, layers_per_block=config.layers, add_attention=False,
            block_out_channels=(width, 2 * width), down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2, norm_num_groups=math.gcd(8, width))
        nn.init.zeros_(self.network.conv_out.weight)

    def forward(self, noisy: Tensor, sigma: Tensor, conditions: Tensor) -> Tensor:
        """The picture (B, 3, H, W) in what has `sigma` (B,) of noise, 0 to 1."""
        z = F.pixel_unshuffle(noisy, self.config.patch)
        read = F.interpolate(self.read(conditions), z.shape[2:])  # as it is, where they are on the codes' grid
        said = self.network(torch.cat([z, read.to(z.dtype)], 1), sigma * TIMES).sample
        return F.pixel_shuffle(said, self.config.patch)

    @torch.no_grad()
    def sample(self, noise: Tensor, conditions: Tensor) -> Tensor:
        """From noise (B, 3, H, W) along the flow, by Euler's rule."""
        z = noise
        for sigma, later in pairwise(torch.linspace(1, 0, self.config.steps + 1, device=noise.device)):
            velocity = (z - self(z, sigma.expand(len(z)), conditions)) / sigma
            z = z + (later - sigma) * velocity
        return z

    def check(self, number: int, content: Content) -> tuple[int, int]:
        """The pixels (height, width) of a picture. Raises TokenizerError where a content is none of the tokenizer's."""
        height, width = self.tokenizer.check(number, content)
        return height * self.config.scale, width * self.config.scale

    def pictures(self, contents: list[Content], states: Tensor | None = None) -> Tensor:
        """All of one grid; from hidden `states` (B, W, h, w) where it draws from these. Every picture begins with the
        same noise, so that none depends on what is drawn with it."""
        conditions = self.tokenizer.conditions(contents) if states is None else states
        noise = torch.randn(3, *self.check(0, contents[0]), generator=torch.Generator().manual_seed(0))
        return self.sample(noise.to(conditions.device).expand(len(contents), -1, -1, -1), conditions)


class Detokenization(OfPictures):
    """The detokenizer's own loss: how far the picture that it says lies from the one that noise was put on.

    `states` gives the hidden states (W, h, w) that each content is written from behind its text, where it draws from
    these.
    """

    def __init__(self, detokenizer: FlowDetokenizer,
                 states: Callable[[list[Content], tuple[str, ...]], list[Tensor]] | None = None):
        super().__init__()
        self.detokenizer, self.states = detokenizer, states

    def losses(self, images, texts):
        """Of images `scale` times as large as the tokenizer's, which encodes them shrunk, in eval mode."""
        drawer, tokenizer = self.detokenizer, self.detokenizer.tokenizer
        small = F.interpolate(images, scale_factor=1 / drawer.config.scale, mode="bicubic", antialias=True)
        with torch.no_grad():
            contents = tokenizer.contents(small.clamp(-1, 1))
            conditions = torch.stack(self.states(contents, texts)) if self.states else tokenizer.conditions(contents)
        sigma = torch.sigmoid(MEAN + SPREAD * torch.randn(len(images), device=images.device))
        noisy = torch.lerp(images, torch.randn_like(images), sigma[:, None, None, None])
        again = drawer(noisy, sigma, conditions)
        return {"flow": pixel_errors(again.float(), images, drawer.config.foreground_weight, 0)["mse"]}
