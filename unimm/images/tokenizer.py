"""Image tokenizers: built fresh or from a release, used on lists of pictures, fingerprinted, kept in a folder.

    uint8 images --to_codes--> Codes --to_pixels--> uint8 images          (lists, for data and sampling)
    released weights --released_tokenizer--> ImageTokenizer --save_tokenizer--> folder --load_tokenizer--> same

What a tokenizer is and does stands in `unimm.images.base.ImageTokenizer`. A saved tokenizer is a folder of
model.safetensors, in our names, and config.json; the latter holds the fingerprint of both, since a flipped bit
in safetensors loads as a wrong value without a word.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Protocol, assert_never

import numpy as np
import torch
from torch import Tensor

from unimm.config import images as config
from unimm.disk import replace_file
from unimm.images.base import ImageTokenizer, TokenizerError
from unimm.images.conv import ConvImageTokenizer
from unimm.images.released import fill
from unimm.images.vit import ViTImageTokenizer
from unimm.sample import Content
from unimm.weights import WEIGHTS, open_weights

AT_ONCE, PIXELS_AT_ONCE = 256, 2**20
"""Images encoded or decoded in one pass, and their pixels: the widest maps of a VQGAN take 1 KB a pixel."""
CONFIG = "config.json"
ELSEWHERE = ("weights", "unpickle")
"""Fields of a configuration that say where weights came from, not what they are."""


def build_tokenizer(wanted: config.ImageTokenizer) -> ImageTokenizer:
    """A tokenizer with fresh weights."""
    match wanted:
        case config.ConvTokenizer():
            return ConvImageTokenizer(wanted)
        case config.ViTTokenizer():
            return ViTImageTokenizer(wanted)
        case config.Emu3():
            from unimm.images.emu3 import Emu3Tokenizer  # late, both: transformers and diffusers take seconds to import

            return Emu3Tokenizer(wanted)
        case config.Published():
            from unimm.images.vqgan import VQGAN

            return VQGAN(wanted)
        case _:
            assert_never(wanted)


def first_tokenizer(wanted: config.ImageTokenizer) -> ImageTokenizer:
    """The tokenizer that a run begins with: a release's where the configuration names its weights, else a fresh one.

    Raises StoredError where the weights can't be read, TokenizerError where they are another tokenizer's.
    """
    if not is_released(wanted):
        return build_tokenizer(wanted)
    with torch.device("meta"):
        tokenizer = build_tokenizer(wanted)
    path = Path(wanted.weights)
    fill(tokenizer, open_weights(path, wanted.unpickle), path)
    return tokenizer.eval()


def is_released(wanted: config.ImageTokenizer) -> bool:
    """Whether the configuration names weights, so that no stage has to train the tokenizer."""
    return isinstance(wanted, config.Published) and wanted.weights != ""


class Drawer(Protocol):
    """What draws pixels: an image tokenizer, or a diffusion decoder in its place; methods as of the first."""

    def check(self, number: int, content: Content) -> tuple[int, int]: ...

    def pictures(self, contents: list[Content]) -> Tensor: ...


def to_tensor(images: list[np.ndarray]) -> Tensor:
    """uint8 (H, W, 3) of one size -> float32 (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def to_codes(tokenizer: ImageTokenizer, images: list[np.ndarray]) -> list[Content]:
    """Codes, or latents, of uint8 (H, W, 3) images, of whatever sizes the tokenizer takes. Raises TokenizerError for
    any other."""
    for i, image in enumerate(images):
        fits = image.ndim == 3 and image.shape[2] == 3 and tokenizer.takes(*image.shape[:2])
        if not fits or image.dtype != np.uint8:
            raise TokenizerError(f"image {i} is {image.dtype} {image.shape}; this image tokenizer takes "
                                 f"uint8 {tokenizer.sizes_taken}: crop and resize it first")
    found: dict[int, Content] = {}
    for some in _batches([image.shape[:2] for image in images]):
        found.update(zip(some, tokenizer.contents(to_tensor([images[i] for i in some]).to(tokenizer.device))))
    return [found[i] for i in range(len(images))]


@torch.no_grad()
def to_pixels(drawer: Drawer, contents: list[Content]) -> list[np.ndarray]:
    """The uint8 (H, W, 3) images of contents. Raises TokenizerError for those of another grid or codebook."""
    found: dict[int, np.ndarray] = {}
    for some in _batches([drawer.check(i, content) for i, content in enumerate(contents)]):
        drawn = drawer.pictures([contents[i] for i in some])
        pixels = ((drawn.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        found.update(zip(some, pixels))
    return [found[i] for i in range(len(contents))]


def _batches(sizes: list[tuple[int, int]]) -> Iterator[list[int]]:
    """The numbers of images of one size each, as many as go into one pass."""
    for size in dict.fromkeys(sizes):
        alike = [i for i, other in enumerate(sizes) if other == size]
        n = max(1, min(AT_ONCE, PIXELS_AT_ONCE // (size[0] * size[1])))
        yield from (alike[i : i + n] for i in range(0, len(alike), n))


def fingerprint(tokenizer: ImageTokenizer) -> str:
    """SHA-256 of the configuration and of every weight's name, type, shape and bytes, in hexadecimal.

    Where a release's weights were read from leaves no trace in it.
    """
    return _fingerprint(tokenizer.config, tokenizer.state_dict())


def _fingerprint(made: config.ImageTokenizer, weights: dict[str, Tensor]) -> str:
    about = {name: value for name, value in dataclasses.asdict(made).items() if name not in ELSEWHERE}
    # A 4 given for a float comes back from JSON as 4.0: compare numbers as floats.
    plain = json.loads(json.dumps(about), parse_int=float)
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name, weight in sorted(weights.items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save_tokenizer(tokenizer: ImageTokenizer, folder: Path) -> None:
    """Write the tokenizer's folder, in place of one that may be there. Raises DiskError.

    A folder is a tokenizer's while it has its configuration, which is written last.
    """
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    replace_file(folder / WEIGHTS, save({name: t.contiguous() for name, t in tokenizer.state_dict().items()}))
    about = {"config": dataclasses.asdict(tokenizer.config), "fingerprint": fingerprint(tokenizer)}
    replace_file(folder / CONFIG, (json.dumps(about, indent=2) + "\n").encode())


def load_tokenizer(folder: Path) -> ImageTokenizer:
    """The tokenizer of a folder, on the CPU, in eval mode.

    Raises TokenizerError where files are missing or not of one another, StoredError for weights that are damaged.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise TokenizerError(f"{folder} is not an image tokenizer: it has no {name}; train or copy the tokenizer")
    made, saved = _read_config(folder / CONFIG)
    weights = {name: stored.read() for name, stored in open_weights(folder / WEIGHTS).items()}
    if _fingerprint(made, weights) != saved:
        raise TokenizerError(f"{folder} differs from what was saved: its fingerprint isn't that in {CONFIG}; copy the "
                             "folder again or train again")
    tokenizer = build_tokenizer(made)
    tokenizer.load_state_dict(weights)
    return tokenizer.eval()


def _read_config(path: Path) -> tuple[config.ImageTokenizer, str]:
    from pydantic import Field, TypeAdapter

    try:
        about = json.loads(path.read_text())
        kinds = TypeAdapter(Annotated[config.ImageTokenizer, Field(discriminator="kind")])
        return kinds.validate_python(about["config"], extra="forbid"), about["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        why = " ".join(str(error).split())
        raise TokenizerError(f"{path} does not describe an image tokenizer: {why}; copy it again") from None
