"""What every image tokenizer is, whatever its architecture: encoder, quantizer, decoder."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimm.config.images import ImageTokenizer as Config
from unimm.config.images import OwnTokenizer
from unimm.errors import UserError
from unimm.images.quantizer import Quantizer
from unimm.losses import pixel_errors
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
        ids (..., P) or (..., P, depth)        --vectors_of> float32 (..., P, dim): what codes of a level stand for

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

    def maps(self, images: Tensor) -> list[Tensor]:
        """What the quantizer of each level codes, (B, dim, h, w) each."""
        return [self.latents(images)]

    def joined(self, vectors: list[Tensor]) -> Tensor:
        """What the decoder draws from, (B, C, h, w), of the vectors (B, dim, h, w) of each level."""
        return vectors[0]

    def pixel_losses(self, again: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Of images given back, float32 (B, 3, H, W). Each image by itself, so that equal shares of a batch average to
        the whole."""
        if isinstance(self.config, OwnTokenizer):
            return pixel_errors(again, images, self.config.foreground_weight, self.config.l1)
        return {"mse": F.mse_loss(again, images)}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.quantizer.ids_of(self.maps(self._checked(images))[-1])

    def decode(self, ids: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        return self.pictures([Codes((Level(row.reshape(len(row), -1), grid),)) for row in ids.cpu().numpy()])

    def vectors_of(self, ids: Tensor, level: int = -1) -> Tensor:
        return self.quantizers[level].codes_to_vectors(ids)

    def expand(self, latents: Tensor) -> Tensor:
        """Latents (B, n, channels) as the vectors that they are read as, (B, n, vector_dim)."""
        return latents

    @property
    def vector_dim(self) -> int:
        return sum(quantizer.dim for quantizer in self.quantizers)

    @torch.no_grad()
    def contents(self, images: Tensor) -> list[Content]:
        maps = self.maps(self._checked(images))
        grids = [tuple(found.shape[2:]) for found in maps]
        if not self.quantizer.depth:
            rows = self.quantizer.settled(maps[0].float().flatten(2).mT)
            return [Latents(row, *grids) for row in rows.cpu().numpy()]
        ids = [quantizer.ids_of(found).reshape(len(images), -1, quantizer.depth).cpu().numpy()
               for quantizer, found in zip(self.quantizers, maps)]
        return [Codes(tuple(map(Level, each, grids))) for each in zip(*ids)]

    def conditions(self, contents: list[Content]) -> Tensor:
        """What the decoder draws such contents from, (B, C, h, w); all of one grid."""
        stacked = [torch.from_numpy(np.stack(each)).to(self.device) for each in zip(*map(arrays, contents))]
        found = [quantizer.codes_to_vectors(each.long().squeeze(-1)) if quantizer.depth else each
                 for quantizer, each in zip(self.quantizers, stacked)]
        return self.joined([_on_grid(each, grid) for each, grid in zip(found, self._grids(contents[0]))])

    def pictures(self, contents: list[Content]) -> Tensor:
        return self.drawn(self.conditions(contents).to(next(self.parameters()).dtype)).float()

    def _grids(self, content: Content) -> list[tuple[int, int]]:
        """The grid of each level that a content of this tokenizer would have."""
        own = content.levels[0] if isinstance(content, Codes) else content
        return [(self.any_size and own.grid) or self.grid]

    def _counts(self, content: Content) -> list[tuple[int, int]]:
        """The least and the most positions of each level of such a content."""
        return [(h * w, h * w) for h, w in self._grids(content)]

    def check(self, number: int, content: Content) -> tuple[int, int]:
        """The pixels (height, width) of a content. Raises TokenizerError where it is none of this tokenizer's."""
        depth, (height, width) = self.quantizer.depth, self._grids(content)[-1]
        found = arrays(content) if isinstance(content, Codes if depth else Latents) else []
        spaces = [(columns, -1, size) for size, columns in self.books.values()] or [(self.dim, -np.inf, np.inf)]
        wanted = list(zip(self._counts(content), spaces, strict=True))
        if len(found) != len(wanted) or not all(map(_fits, found, wanted)):
            given = " and ".join(f"{rows.shape}, {rows.min()} to {rows.max()}" for rows in found) or "nothing"
            ours = " and ".join(map(_in_words, wanted))
            raise TokenizerError(f"{'codes' if depth else 'contents'} {number} are {len(found)} level(s) of {given}; "
                                 f"this image tokenizer has {ours}")
        return height * self.patch, width * self.patch

    @property
    def quantizers(self) -> list[Quantizer]:
        """That of each level."""
        return [self.quantizer]

    @property
    def books(self) -> dict[str, tuple[int, int]]:
        return {self.config.codebook: (self.size, self.quantizer.depth)} if self.quantizer.depth else {}

    @property
    def channels(self) -> dict[str, int]:
        return {} if self.quantizer.depth else {self.config.codebook: self.dim}

    def forward(self, images: Tensor) -> Reconstruction:
        """The reconstruction and the loss; in training mode this also updates a moving-average codebook."""
        vectors, ids, loss = self.quantizer(self.latents(self._checked(images)))
        again = self.drawn(vectors).float()
        losses = self.pixel_losses(again, images.float()) | {"quantizer": loss}
        return Reconstruction(again, ids, losses, vectors.flatten(2).mT)

    @torch.no_grad()
    def code_vectors(self) -> dict[str, Tensor]:
        return {name: self.vectors_of(torch.arange(size, device=self.device), level)
                for level, (name, (size, depth)) in enumerate(self.books.items()) if depth == 1}

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
        return height == width == self.config.image

    @property
    def sizes_taken(self) -> str:
        """The sizes of images in words, for messages."""
        if self.any_size:
            return f"(height, width, 3), both sides multiples of {self.patch}"
        return f"{(self.config.image, self.config.image, 3)}"

    def _checked(self, images: Tensor) -> Tensor:
        """The images as the weights' type. Raises TokenizerError for a size that isn't taken."""
        if images.ndim != 4 or images.shape[1] != 3 or not self.takes(*images.shape[2:]):
            raise TokenizerError(f"this image tokenizer takes images of {self.sizes_taken}, channels first; "
                                 f"got {tuple(images.shape[1:])}; crop and resize them first")
        return images.to(next(self.parameters()).dtype)


def arrays(content: Codes | Latents) -> list[np.ndarray]:
    """The ids of each level, or the latents."""
    return [level.ids for level in content.levels] if isinstance(content, Codes) else [content.array]


Space = tuple[tuple[int, int], tuple[int, float, float]]
"""The least and the most positions of a level; its columns, and what its values lie between."""


def _fits(rows: np.ndarray, wanted: Space) -> bool:
    (least, most), (columns, low, high) = wanted
    return least <= len(rows) <= most and rows.shape[1] == columns and bool(low < rows.min() and rows.max() < high)


def _in_words(wanted: Space) -> str:
    (least, most), (columns, _, high) = wanted
    count = f"{least} to {most}" if least < most else f"{least}"
    return f"one of ({count}, {columns}) below {high}" if high < np.inf else f"{count} latents of {columns} channels"


def _on_grid(rows: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, h * w, C) -> (B, C, h, w)"""
    return rows.unflatten(1, grid).permute(0, 3, 1, 2)
