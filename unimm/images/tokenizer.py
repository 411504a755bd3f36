"""Image tokenizers: built fresh, from a release or from a run's folder, and used on lists of pictures.

    uint8 images --to_codes--> Codes --to_pixels--> uint8 images          (lists, for data and sampling)
    released weights --first_tokenizer--> ImageTokenizer --save_tokenizer--> folder --load_tokenizer--> same

What a tokenizer is and does stands in `unimm.images.base.ImageTokenizer`.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import assert_never

import numpy as np
import torch
from torch import Tensor, nn

from unimm.config import images as config
from unimm.config.model import PretrainedVision
from unimm.images.base import ImageTokenizer, TokenizerError
from unimm.images.conv import ConvImageTokenizer
from unimm.images.dual import DualImageTokenizer, LeveledImageTokenizer
from unimm.images.released import fill
from unimm.images.vit import ViTImageTokenizer
from unimm.published import vision
from unimm.sample import Content
from unimm.weights import CONFIG, fetch, fingerprint, keep, open_weights  # noqa: F401

AT_ONCE, PIXELS_AT_ONCE = 256, 2**20
"""Images encoded or decoded in one pass, and their pixels: the widest maps of a VQGAN take 1 KB a pixel."""
FEATURES = "features"
"""The folder that says, in transformers' config.json, what a dual tokenizer's feature network is."""


def build_tokenizer(wanted: config.ImageTokenizer, features: nn.Module | None = None) -> ImageTokenizer:
    """A tokenizer with fresh weights; of a dual one `features`, a vision encoder, becomes a part, as a copy.

    Raises TokenizerError where it needs one and has none.
    """
    match wanted:
        case config.ConvTokenizer():
            return ConvImageTokenizer(wanted)
        case config.ViTTokenizer():
            return ViTImageTokenizer(wanted)
        case config.DualTokenizer(index=index):
            if features is None:
                raise TokenizerError("a dual image tokenizer is built on features, and there are none; set features, "
                                     "and a stage Contrast before where they are fresh")
            return (DualImageTokenizer if index == "shared" else LeveledImageTokenizer)(wanted, features)
        case config.Published():
            from unimm.images import vqgan  # late: transformers and diffusers take seconds to import

            return (vqgan.Emu3Tokenizer if isinstance(wanted, config.Emu3) else vqgan.VQGAN)(wanted)
        case _:
            assert_never(wanted)


def first_tokenizer(wanted: config.ImageTokenizer, features: nn.Module | None = None) -> ImageTokenizer:
    """The tokenizer that a run begins with: a release's where the configuration names its weights, else a fresh one,
    built on `features` if it is dual.

    Raises StoredError where the weights can't be read, TokenizerError where they are another tokenizer's.
    """
    if not is_released(wanted):
        return build_tokenizer(wanted, features)
    with torch.device("meta"):
        tokenizer = build_tokenizer(wanted)
    fill(tokenizer, open_weights(Path(wanted.weights), wanted.unpickle), Path(wanted.weights))
    return tokenizer.eval()


def is_released(wanted: config.ImageTokenizer) -> bool:
    """Whether the configuration names weights, so that no stage has to train the tokenizer."""
    return isinstance(wanted, config.Published) and wanted.weights != ""


def to_tensor(images: list[np.ndarray]) -> Tensor:
    """uint8 (H, W, 3) of one size -> float32 (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def to_codes(tokenizer: ImageTokenizer, images: list[np.ndarray]) -> list[Content]:
    """Codes, or latents, of uint8 (H, W, 3) images, of whatever sizes the tokenizer takes. Raises TokenizerError for
    any other."""
    for i, image in enumerate(images):
        given = f"image {i} is {image.dtype} {image.shape}"
        tokenizer.check_shape(given, image.shape if image.dtype == np.uint8 else ())
    return _by_size(images, [image.shape[:2] for image in images],
                    lambda some: tokenizer.contents(to_tensor(some).to(tokenizer.device)))


@torch.no_grad()
def to_pixels(drawer: nn.Module, contents: list[Content], states: list[Tensor] | None = None) -> list[np.ndarray]:
    """The uint8 (H, W, 3) images of contents, drawn by an image tokenizer or what has `check` and `pictures` as it has;
    by a decoder of hidden states from those of each, (W, h, w). Raises TokenizerError for another grid or codebook."""
    def drawn(some: list[int]) -> np.ndarray:
        seen = () if states is None else (torch.stack([states[i] for i in some]),)
        pixels = (drawer.pictures([contents[i] for i in some], *seen).clamp(-1, 1) + 1) * 127.5
        return pixels.round().byte().permute(0, 2, 3, 1).cpu().numpy()

    return _by_size(range(len(contents)), [drawer.check(i, content) for i, content in enumerate(contents)], drawn)


def _by_size(given: list, sizes: list[tuple[int, int]], made_of: Callable[[list], Iterable]) -> list:
    """What is made of each of those given: of those of one size together, as many as go into one pass."""
    found = {}
    for size in dict.fromkeys(sizes):
        alike = [i for i, other in enumerate(sizes) if other == size]
        n = max(1, min(AT_ONCE, PIXELS_AT_ONCE // (size[0] * size[1])))
        for some in (alike[i : i + n] for i in range(0, len(alike), n)):
            found.update(zip(some, made_of([given[i] for i in some])))
    return [found[i] for i in range(len(given))]


def save_tokenizer(tokenizer: ImageTokenizer, folder: Path) -> None:
    """Write the tokenizer's folder, see `unimm.weights.keep`. Raises DiskError."""
    if isinstance(tokenizer, DualImageTokenizer):
        tokenizer.features.config.save_pretrained(Path(folder) / FEATURES)
    keep(tokenizer, folder)


def load_tokenizer(folder: Path) -> ImageTokenizer:
    """The image tokenizer of a folder, on the CPU, in eval mode. Raises StoredError, see `unimm.weights.fetch`."""
    def build(made: config.ImageTokenizer) -> ImageTokenizer:
        kept = PretrainedVision(path=str(Path(folder) / FEATURES))
        dual = isinstance(made, config.DualTokenizer)
        return build_tokenizer(made, vision(kept, made.image, weights=False) if dual else None)

    return fetch(folder, "an image tokenizer", config.ImageTokenizer, build)
