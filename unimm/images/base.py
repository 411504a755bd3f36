"""What every image tokenizer is, whatever its architecture: encoder, quantizer, decoder."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimm.config.images import ImageTokenizer as Config
from unimm.errors import UserError
from unimm.images.quantizer import Quantizer
from unimm.sample import Codes, Content, Latents, Level


class TokenizerError(UserError):
    """Images, codes, weights or a folder that an image tokenizer can't take; the message names the remedy."""


class Reconstruction(NamedTuple):
    """images float32 (B, 3, H, W); ids int64 (B, P) or (B, P, depth), None of latents; losses float32 () by name,
    already weighted: add them up; vectors (B, P, dim), what the ids stand for, with the gradient of what they were made
    from."""

    images: Tensor
    ids: Tensor | None
    losses: dict[str, Tensor]
    vectors: Tensor

    @property
    def loss(self) -> Tensor:
        return sum(self.losses.values())


class ImageTokenizer(nn.Module):
    """Pixels to codes and back.

        images float32 (B, 3, H, W) in [-1, 1] --contents--> B x Codes or Latents, on the host
        B x Codes or Latents                   --pictures--> float32 (B, 3, H, W), in [-1, 1] but for overshoot
        images                                 --forward---> Reconstruction, whose loss trains the tokenizer
        ids (..., P) or (..., P, depth)        --vectors_of> float32 (..., P, dim): what codes stand for

    and of those with one level of codes on a grid, which contents and pictures go through,

        images           --encode--> ids int64 (B, P) or (B, P, depth), P = rows * columns, row by row
        ids, grid        --decode--> float32 (B, 3, H, W)
        code_vectors()               codebook -> float32 (size, dim): every code's vector, where a position has one

    An architecture has an `encoder`, a `quantizer` and a `decoder`; `latents` and `drawn` are the ways to the quantizer
    and from it:

        images (B, 3, H, W) --latents--> (B, dim, h, w) --quantizer--> (B, dim, h, w) --drawn--> (B, 3, H, W)

    `size` codes of `dim` channels, `patch` pixels to a code each way, so that the grid of an image of (H, W)
    pixels is (H / patch, W / patch). `grid` is that of the configuration's own image size; where `any_size` is
    False it is the only one, otherwise an image may have any size of whole patches, and `decode` is to be told
    the grid wherever it isn't that. `books` says of each codebook how many codes it has and how many a position
    (depth), `channels` of each continuous space how many channels. `draws` is False where it lacks its decoder.
    `encode` and `decode` are the same in
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
        return self.drawn(self._on_grid(ids, grid).to(next(self.parameters()).dtype)).float()

    def _on_grid(self, ids: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        return self.vectors_of(ids).unflatten(1, grid or self.grid).permute(0, 3, 1, 2)

    def vectors_of(self, ids: Tensor) -> Tensor:
        return self.quantizer.codes_to_vectors(ids)

    def expand(self, latents: Tensor) -> Tensor:
        """Latents (B, n, channels) as the vectors that they are read as, (B, n, vector_dim)."""
        return latents

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the configuration's own image."""
        return self.grid[0] * self.patch, self.grid[1] * self.patch

    @property
    def vector_dim(self) -> int:
        return self.dim

    @torch.no_grad()
    def contents(self, images: Tensor) -> list[Content]:
        grid = (images.shape[2] // self.patch, images.shape[3] // self.patch)
        if self.quantizer.depth:
            return [Codes((Level(row.reshape(len(row), -1), grid),)) for row in self.encode(images).cpu().numpy()]
        found = self.latents(self._checked(images)).flatten(2).transpose(1, 2)
        return [Latents(row, grid) for row in self.quantizer.settled(found.float()).cpu().numpy()]

    def conditions(self, contents: list[Content]) -> Tensor:
        """What the decoder draws such contents from, (B, C, h, w); all of one grid."""
        grid = self._grids(contents[0])[0]
        if self.quantizer.depth:
            return self._on_grid(self._ids_of(contents), grid)
        arrays = torch.from_numpy(np.stack([c.array for c in contents])).to(self.device)
        return arrays.unflatten(1, grid).permute(0, 3, 1, 2)

    def _ids_of(self, contents: list[Content], level: int = 0) -> Tensor:
        """(B, P) or (B, P, depth)"""
        ids = torch.from_numpy(np.stack([c.levels[level].ids for c in contents])).long().to(self.device)
        return ids.squeeze(-1)

    def pictures(self, contents: list[Content]) -> Tensor:
        return self.drawn(self.conditions(contents).to(next(self.parameters()).dtype)).float()

    def _grids(self, content: Content) -> list[tuple[int, int]]:
        """The grid of each level that a content of this tokenizer would have."""
        own = content.levels[0] if isinstance(content, Codes) else content
        return [(self.any_size and own.grid) or self.grid]

    def check(self, number: int, content: Content) -> tuple[int, int]:
        """The pixels (height, width) of a content. Raises TokenizerError where it is none of this tokenizer's."""
        grids = self._grids(content)
        if self.quantizer.depth == 0:
            wanted = (grids[0][0] * grids[0][1], self.dim)
            if not isinstance(content, Latents) or content.array.shape != wanted:
                raise TokenizerError(f"contents {number} are no latents {wanted}; this image tokenizer draws from such")
        elif fault := self._fault(content, grids):
            raise TokenizerError(f"codes {number} are {fault}")
        return grids[-1][0] * self.patch, grids[-1][1] * self.patch

    def _fault(self, content: Content, grids: list[tuple[int, int]]) -> str:
        """What is wrong with codes, or nothing."""
        levels = content.levels if isinstance(content, Codes) else ()
        wanted = [((h * w, depth), size) for (h, w), (size, depth) in zip(grids, self.books.values(), strict=True)]
        if len(levels) == len(wanted) and all(
                level.ids.shape == shape and level.ids.min() >= 0 and level.ids.max() < size
                for level, (shape, size) in zip(levels, wanted)):
            return ""
        found = " and ".join(f"{level.ids.shape}, {level.ids.min()} to {level.ids.max()}" for level in levels)
        ours = " and ".join(f"one of {shape} below {size}" for shape, size in wanted)
        return f"{len(levels)} level(s) of {found or 'nothing'}; this image tokenizer has {ours}"

    @property
    def books(self) -> dict[str, tuple[int, int]]:
        return {self.config.codebook: (self.size, self.quantizer.depth)} if self.quantizer.depth else {}

    @property
    def channels(self) -> dict[str, int]:
        return {} if self.quantizer.depth else {self.config.codebook: self.dim}

    def forward(self, images: Tensor) -> Reconstruction:
        """The reconstruction and the loss; in training mode this also updates a moving-average codebook."""
        quantized = self.quantizer(self.latents(self._checked(images)))
        again = self.drawn(quantized.vectors).float()
        losses = self.pixel_losses(again, images.float())
        vectors = quantized.vectors.flatten(2).transpose(1, 2)
        return Reconstruction(again, quantized.ids, losses | {"quantizer": quantized.loss}, vectors)

    @torch.no_grad()
    def code_vectors(self) -> dict[str, Tensor]:
        return {name: self.vectors_of(torch.arange(size, device=self.device))
                for name, (size, depth) in self.books.items() if depth == 1}

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
        return (height, width) == self.image_size

    @property
    def sizes_taken(self) -> str:
        """The sizes of images in words, for messages."""
        if self.any_size:
            return f"(height, width, 3), both sides multiples of {self.patch}"
        return f"{(*self.image_size, 3)}"

    def _checked(self, images: Tensor) -> Tensor:
        """The images as the weights' type. Raises TokenizerError for a size that isn't taken."""
        if images.ndim != 4 or images.shape[1] != 3 or not self.takes(*images.shape[2:]):
            raise TokenizerError(f"this image tokenizer takes images of {self.sizes_taken}, channels first; "
                                 f"got {tuple(images.shape[1:])}; crop and resize them first")
        return images.to(next(self.parameters()).dtype)
