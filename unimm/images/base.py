"""What every image tokenizer is, whatever its architecture: encoder, quantizer, decoder."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimm.config.images import ImageTokenizer as Config
from unimm.errors import UserError
from unimm.images.quantize import Quantizer


class TokenizerError(UserError):
    """Images, codes, weights or a folder that an image tokenizer can't take; the message names the remedy."""


class Reconstruction(NamedTuple):
    """images float32 (B, 3, H, W); ids int64 (B, P); losses float32 () by name, already weighted: add them up."""

    images: Tensor
    ids: Tensor
    losses: dict[str, Tensor]

    @property
    def loss(self) -> Tensor:
        return sum(self.losses.values())


class ImageTokenizer(nn.Module):
    """Pixels to codes and back.

        images float32 (B, 3, H, W) in [-1, 1] --encode--> ids int64 (B, P), P = rows * columns, row by row
        ids (B, P), grid (rows, columns)       --decode--> float32 (B, 3, H, W), in [-1, 1] but for overshoot
        images                                 --forward-> Reconstruction, whose loss trains the tokenizer
        code_vectors()                                     float32 (size, dim): every code's vector

    An architecture has an `encoder`, a `quantizer` and a `decoder`; `latents` and `drawn` are the ways to the quantizer
    and from it:

        images (B, 3, H, W) --latents--> (B, dim, h, w) --quantizer--> (B, dim, h, w) --drawn--> (B, 3, H, W)

    `size` codes of `dim` channels, `patch` pixels to a code each way, so that the grid of an image of (H, W)
    pixels is (H / patch, W / patch). `grid` is that of the configuration's own image size; where `any_size` is
    False it is the only one, otherwise an image may have any size of whole patches, and `decode` is to be told
    the grid wherever it isn't that. `draws` is False where it lacks its decoder. `encode` and `decode` are the same in
    training and in eval mode.
    Pictures become such images by `unimm.images.prepare.prepare` and `to_tensor`.
    """

    any_size = False
    draws = True
    quantizer: Quantizer

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.patch = config.downsample
        self.grid = (config.image // self.patch, config.image // self.patch)

    def latents(self, images: Tensor) -> Tensor:
        return self.encoder(images)

    def drawn(self, vectors: Tensor) -> Tensor:
        return self.decoder(vectors)

    def pixel_losses(self, again: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Of images given back, float32 (B, 3, H, W). Each image by itself, so that equal shares of a batch average to
        the whole."""
        return {"mse": F.mse_loss(again, images)}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.quantizer.ids_of(self.latents(self._checked(images)))

    def decode(self, ids: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        vectors = self.quantizer.codes_to_vectors(ids).unflatten(1, grid or self.grid).permute(0, 3, 1, 2)
        return self.drawn(vectors.to(next(self.parameters()).dtype)).float()

    def forward(self, images: Tensor) -> Reconstruction:
        """The reconstruction and the loss; in training mode this also updates a moving-average codebook."""
        quantized = self.quantizer(self.latents(self._checked(images)))
        again = self.drawn(quantized.vectors).float()
        losses = self.pixel_losses(again, images.float())
        return Reconstruction(again, quantized.ids, losses | {"quantizer": quantized.loss})

    @torch.no_grad()
    def code_vectors(self) -> Tensor:
        return self.quantizer.codes_to_vectors(torch.arange(self.size, device=self.device))

    @property
    def size(self) -> int:
        return self.quantizer.size

    @property
    def dim(self) -> int:
        return self.quantizer.dim

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def takes(self, height: int, width: int) -> bool:
        """Whether an image may have this many pixels."""
        if self.any_size:
            return height > 0 and width > 0 and height % self.patch == 0 and width % self.patch == 0
        return (height, width) == (self.grid[0] * self.patch, self.grid[1] * self.patch)

    @property
    def sizes_taken(self) -> str:
        """The sizes of images in words, for messages."""
        if self.any_size:
            return f"(height, width, 3), both sides multiples of {self.patch}"
        return f"{(self.grid[0] * self.patch, self.grid[1] * self.patch, 3)}"

    def _checked(self, images: Tensor) -> Tensor:
        """The images as the weights' type. Raises TokenizerError for a size that isn't taken."""
        if images.ndim != 4 or images.shape[1] != 3 or not self.takes(*images.shape[2:]):
            raise TokenizerError(f"this image tokenizer takes images of {self.sizes_taken}, channels first; "
                                 f"got {tuple(images.shape[1:])}; crop and resize them first")
        return images.to(next(self.parameters()).dtype)
