"""What every image tokenizer is, whatever its architecture: encoder, quantizer, decoder."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimm.config.images import ImageTokenizer as Config
from unimm.config.images import OwnTokenizer
from unimm.errors import UserError
from unimm.images.quantize import Quantizer
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
        code_vectors()                         codebook -> float32 (size, dim): every code's vector, where a position
                                               has one

    An architecture has an `encoder`, a `quantizer` and a `decoder`; `maps` and `drawn` are the ways to the quantizer
    and from it, with one map for each level:

        images (B, 3, H, W) --maps--> (B, dim, h, w) --quantizer--> (B, dim, h, w) --drawn--> (B, 3, H, W)

    Vectors of `dim` channels, of all levels together, `patch` pixels to a code each way, so that the grid of an image
    of (H, W) pixels is (H / patch, W / patch). `grid` is that of the configuration's own image size; where `any_size`
    is False it is the only one, otherwise an image may have any size of whole patches. Where tokens are no grid,
    `counts` says how few and how many there may be. `books` says of each codebook how many codes it has and how many a
    position (depth), `channels` of each continuous space how many channels. `draws` is False where it lacks its
    decoder. `contents` and `pictures` are the same in training and in eval mode.
    Pictures become such images by `unimm.images.prepare.prepare` and `to_tensor`.
    """

    any_size, draws = False, True
    counts: tuple[int, int] | None = None
    quantizer: Quantizer

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.patch = config.downsample
        self.grid = (config.image // self.patch, config.image // self.patch)

    def drawn(self, vectors: Tensor) -> Tensor:
        return self.decoder(vectors)

    def maps(self, images: Tensor) -> list[Tensor]:
        """What the quantizer of each level codes, (B, dim, h, w) each."""
        return [self.encoder(images)]

    def joined(self, vectors: list[Tensor]) -> Tensor:
        """What the decoder draws from, (B, C, h, w), of the vectors (B, dim, h, w) of each level."""
        return vectors[0]

    def rebuilt(self, images: Tensor, drawn_from: Tensor, ids: Tensor | None, vectors: Tensor,
                losses: dict[str, Tensor]) -> Reconstruction:
        """What images come to, with the losses of their pixels beside `losses`: each image's by itself, so that equal
        shares of a batch average to the whole."""
        again, config = self.drawn(drawn_from).float(), self.config
        pixels = (pixel_errors(again, images.float(), config.foreground_weight, config.l1)
                  if isinstance(config, OwnTokenizer) else {"mse": F.mse_loss(again, images.float())})
        return Reconstruction(again, ids, pixels | losses, vectors)

    def vectors_of(self, ids: Tensor, level: int = -1) -> Tensor:
        return self.quantizers[level].codes_to_vectors(ids)

    def expand(self, latents: Tensor) -> Tensor:
        """Latents (B, n, channels) as the vectors that they are read as, (B, n, dim)."""
        return latents

    @torch.no_grad()
    def contents(self, images: Tensor) -> list[Content]:
        maps = self.maps(self._checked(images))
        grids = [tuple(found.shape[2:]) for found in maps]
        rows = [quantizer.ids_of(found).reshape(len(images), h * w, -1).cpu().numpy()
                for quantizer, found, (h, w) in zip(self.quantizers, maps, grids)]
        if not self.quantizer.depth:
            return [Latents(row, *grids) for row in rows[0]]
        return [Codes(tuple(map(Level, each, grids))) for each in zip(*rows)]

    def conditions(self, contents: list[Content]) -> Tensor:
        """What the decoder draws such contents from, (B, C, h, w); all of one grid."""
        stacked = [torch.from_numpy(np.stack(each)).to(self.device) for each in zip(*map(arrays, contents))]
        found = [quantizer.codes_to_vectors(each.squeeze(-1) if quantizer.depth == 1 else each).mT
                 for quantizer, each in zip(self.quantizers, stacked)]
        return self.joined([each.unflatten(2, grid) for each, grid in zip(found, self._grids(contents[0]))])

    def pictures(self, contents: list[Content]) -> Tensor:
        return self.drawn(self.conditions(contents).to(next(self.parameters()).dtype)).float()

    def _grids(self, content: Content) -> list[tuple[int, int]]:
        """The grid of each level that a content of this tokenizer would have."""
        own = content.levels[0] if isinstance(content, Codes) else content
        return [(self.any_size and own.grid) or self.grid]

    def check(self, number: int, content: Content) -> tuple[int, int]:
        """The pixels (height, width) of a content. Raises TokenizerError where it is none of this tokenizer's."""
        depth, grids = self.quantizer.depth, self._grids(content)
        found = arrays(content) if isinstance(content, Codes if depth else Latents) else []
        spaces = [(-1, *book) for book in self.books.values()] or [(-np.inf, np.inf, self.quantizer.dim)]
        wanted = [(*space, *(self.counts or (h * w, h * w))) for space, (h, w) in zip(spaces, grids, strict=True)]
        fits = [least <= len(rows) <= most and rows.shape[1] == columns and low < rows.min() and rows.max() < high
                for rows, (low, high, columns, least, most) in zip(found, wanted)]
        if len(found) != len(wanted) or not all(fits):
            given = " and ".join(f"{rows.shape}, {rows.min()} to {rows.max()}" for rows in found) or "nothing"
            counts = [f"{least} to {most}" if least < most else f"{least}" for *_, least, most in wanted]
            ours = " and ".join(f"one of ({count}, {columns}) below {high}" if depth else
                                f"{count} latents of {columns} channels"
                                for count, (_, high, columns, *_) in zip(counts, wanted))
            raise TokenizerError(f"{'codes' if depth else 'latents'} {number} are {len(found)} level(s) of {given}; "
                                 f"this image tokenizer has {ours}")
        return grids[-1][0] * self.patch, grids[-1][1] * self.patch

    @property
    def quantizers(self) -> list[Quantizer]:
        """That of each level."""
        return [self.quantizer]

    @property
    def books(self) -> dict[str, tuple[int, int]]:
        return {self.config.codebook: (self.quantizer.size, self.quantizer.depth)} if self.quantizer.depth else {}

    @property
    def channels(self) -> dict[str, int]:
        return {} if self.quantizer.depth else {self.config.codebook: self.quantizer.dim}

    def forward(self, images: Tensor) -> Reconstruction:
        """The reconstruction and the loss; in training mode this also updates a moving-average codebook."""
        vectors, ids, loss = self.quantizer(*self.maps(self._checked(images)))
        return self.rebuilt(images, vectors, ids, vectors.flatten(2).mT, {"quantizer": loss})

    @torch.no_grad()
    def code_vectors(self) -> dict[str, Tensor]:
        return {name: self.vectors_of(torch.arange(size, device=self.device), level)
                for level, (name, (size, depth)) in enumerate(self.books.items()) if depth == 1}

    @property
    def dim(self) -> int:
        return sum(quantizer.dim for quantizer in self.quantizers)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def check_shape(self, given: str, shape: tuple[int, ...]) -> None:
        """Raises TokenizerError, which says what is `given`, where images can't be of `shape`, (height, width, 3)."""
        side, patch = self.config.image, self.patch
        whole = min(shape, default=0) > 0 and not any(n % patch for n in shape[:2])
        if shape[2:] != (3,) or not (whole if self.any_size else shape[:2] == (side, side)):
            sizes = f"(height, width, 3), both sides multiples of {patch}" if self.any_size else f"({side}, {side}, 3)"
            raise TokenizerError(f"{given}; this image tokenizer takes uint8 {sizes}: crop and resize it first")

    def _checked(self, images: Tensor) -> Tensor:
        """The images as the weights' type. Raises TokenizerError for a size that isn't taken."""
        self.check_shape(f"a batch is {tuple(images.shape)}", (*images.shape[2:], *images.shape[1:2]))
        return images.to(next(self.parameters()).dtype)


def arrays(content: Codes | Latents) -> list[np.ndarray]:
    """The ids of each level, or the latents."""
    return [level.ids for level in content.levels] if isinstance(content, Codes) else [content.array]
