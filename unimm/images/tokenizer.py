"""The image tokenizer: pixels to codes and back, its training loss, its fingerprint, its folder.

    uint8 images --to_codes--> Codes --to_pixels--> uint8 images          (lists, for data and sampling)
    (B, 3, H, W) --encode--> ids int64 (B, P) --decode--> (B, 3, H, W)    (float32 in [-1, 1])
    (B, 3, H, W) --forward--> Reconstruction, whose loss trains it

A saved tokenizer is a folder of model.safetensors and config.json; the latter holds the fingerprint
of both, since a flipped bit in safetensors loads as a wrong value without a word.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from unimm.config.images import ConvTokenizer
from unimm.errors import UserError
from unimm.images.conv import Decoder, Encoder
from unimm.images.quantize import build_quantizer
from unimm.sample import Codes

AT_ONCE = 256
"""Images encoded or decoded in one pass."""
SAME_COLOUR = 0.05
"""Largest difference of a channel, of 2, at which a pixel still counts as background."""
WEIGHTS, CONFIG = "model.safetensors", "config.json"


class TokenizerError(UserError):
    """Images, codes or a folder that this image tokenizer can't take; the message names the remedy."""


class Reconstruction(NamedTuple):
    """images float32 (B, 3, H, W); ids int64 (B, P); losses float32 () by name, already weighted: add them up."""

    images: Tensor
    ids: Tensor
    losses: dict[str, Tensor]

    @property
    def loss(self) -> Tensor:
        return sum(self.losses.values())


class ImageTokenizer(nn.Module):
    """Encoder, quantizer, decoder. `size` codes of `dim` channels on a `grid` of (rows, columns)."""

    def __init__(self, config: ConvTokenizer):
        super().__init__()
        self.config = config
        side = config.image // config.downsample
        self.grid = (side, side)
        self.quantizer = build_quantizer(config.quantizer)
        self.size, self.dim = self.quantizer.size, self.quantizer.dim
        self.encoder = Encoder(config.downsample, config.width, config.blocks, config.encoder_kernel, self.dim)
        self.decoder = Decoder(config.downsample, config.width, config.blocks, self.dim)

    def forward(self, images: Tensor) -> Reconstruction:
        """The reconstruction and the loss; in training mode this also updates a moving-average codebook."""
        quantized = self.quantizer(self.encoder(self._checked(images)))
        again = self.decoder(quantized.vectors).float()
        losses = {**self._pixel_losses(again, images.float()), "quantizer": quantized.loss}
        return Reconstruction(again, quantized.ids, losses)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """float32 (B, 3, H, W) in [-1, 1] -> int64 (B, P), row by row; the same in training and in eval mode."""
        return self.quantizer.ids_of(self.encoder(self._checked(images)))

    def decode(self, ids: Tensor) -> Tensor:
        """int64 (B, P) -> float32 (B, 3, H, W), in [-1, 1] but for overshoot."""
        vectors = self.quantizer.codes_to_vectors(ids).unflatten(1, self.grid).permute(0, 3, 1, 2)
        return self.decoder(vectors.to(self.decoder[0].weight.dtype)).float()

    def code_vectors(self) -> Tensor:
        """Every code's vector, float32 (size, dim)."""
        return self.quantizer.codes_to_vectors(torch.arange(self.size, device=self.decoder[0].weight.device))

    def _pixel_losses(self, again: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Squared and absolute error: means over images of means over pixels, those off the border's colour
        weighted by foreground_weight. Each image by itself, so that equal shares of a batch average to the whole."""
        border = torch.cat([images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], dim=2)
        background = border.median(dim=2).values[:, :, None, None]
        foreground = (images - background).abs().amax(1, keepdim=True) > SAME_COLOUR
        weight = 1 + (self.config.foreground_weight - 1) * foreground.float()  # (B, 1, H, W)
        weight = weight / (3 * len(images) * weight.sum((1, 2, 3), keepdim=True))
        difference = again - images
        return {"mse": (weight * difference.square()).sum(),
                "l1": self.config.l1 * (weight * difference.abs()).sum()}

    def _checked(self, images: Tensor) -> Tensor:
        side = self.config.image
        if images.shape[1:] != (3, side, side):
            raise TokenizerError(f"this image tokenizer takes images of (3, {side}, {side}), "
                                 f"got {tuple(images.shape[1:])}; crop and resize them first")
        return images.to(self.encoder[0].weight.dtype)


def build_tokenizer(config: ConvTokenizer) -> ImageTokenizer:
    """A tokenizer with fresh weights."""
    return ImageTokenizer(config)


def to_tensor(images: list[np.ndarray]) -> Tensor:
    """uint8 (H, W, 3) of one size -> float32 (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_codes(tokenizer: ImageTokenizer, images: list[np.ndarray]) -> list[Codes]:
    """Codes of uint8 (H, W, 3) images. Raises TokenizerError for an image that isn't of the tokenizer's size."""
    side, device = tokenizer.config.image, tokenizer.encoder[0].weight.device
    for i, image in enumerate(images):
        if image.shape != (side, side, 3) or image.dtype != np.uint8:
            raise TokenizerError(f"image {i} is {image.dtype} {image.shape}; this image tokenizer takes "
                                 f"uint8 {(side, side, 3)}: crop and resize it first")
    ids = (tokenizer.encode(to_tensor(some).to(device)).cpu().numpy() for some in _batches(images))
    return [Codes.of_grid(row.reshape(tokenizer.grid)) for batch in ids for row in batch]


@torch.no_grad()
def to_pixels(tokenizer: ImageTokenizer, codes: list[Codes]) -> list[np.ndarray]:
    """The uint8 (H, W, 3) images of codes. Raises TokenizerError for codes of another grid or codebook."""
    device = tokenizer.decoder[0].weight.device
    positions = tokenizer.grid[0] * tokenizer.grid[1]
    for i, code in enumerate(codes):
        ids = code.levels[0].ids
        if len(code.levels) != 1 or ids.shape != (positions, 1) or ids.min() < 0 or ids.max() >= tokenizer.size:
            found = f"{len(code.levels)} level(s) of {ids.shape}, {ids.min()} to {ids.max()}"
            raise TokenizerError(f"codes {i} are {found}; "
                                 f"this image tokenizer has one of {(positions, 1)} below {tokenizer.size}")
    images = []
    for some in _batches(codes):
        ids = torch.from_numpy(np.stack([code.levels[0].ids[:, 0] for code in some])).long()
        decoded = (tokenizer.decode(ids.to(device)).clamp(-1, 1) + 1) * 127.5
        images += list(decoded.round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return images


def _batches(items: list) -> Iterator[list]:
    return (items[i : i + AT_ONCE] for i in range(0, len(items), AT_ONCE))


def fingerprint(tokenizer: ImageTokenizer) -> str:
    """SHA-256 of the configuration and of every weight's name, type, shape and bytes, in hexadecimal."""
    # A 4 given for a float comes back from JSON as 4.0: compare numbers as floats.
    plain = json.loads(json.dumps(dataclasses.asdict(tokenizer.config)), parse_int=float)
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name, weight in sorted(tokenizer.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save_tokenizer(tokenizer: ImageTokenizer, folder: Path) -> None:
    """Write the tokenizer's folder aside, then put it in place of one that may be there."""
    from safetensors.torch import save_file

    folder = Path(folder)
    aside, old = folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")
    for left in (aside, old):
        shutil.rmtree(left, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file({name: weight.contiguous() for name, weight in tokenizer.state_dict().items()}, aside / WEIGHTS)
    about = {"config": dataclasses.asdict(tokenizer.config), "fingerprint": fingerprint(tokenizer)}
    (aside / CONFIG).write_text(json.dumps(about, indent=2) + "\n")
    if folder.exists():
        os.rename(folder, old)
    os.rename(aside, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_tokenizer(folder: Path) -> ImageTokenizer:
    """The tokenizer of a folder, on the CPU, in eval mode.

    Raises TokenizerError where files are missing, damaged or not of one another.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise TokenizerError(f"{folder} is not an image tokenizer: it has no {name}; train or copy the tokenizer")
    config, saved = _read_config(folder / CONFIG)
    tokenizer = build_tokenizer(config)
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise TokenizerError(f"{folder / WEIGHTS} is damaged ({error}); copy it again or train again") from None
    ours, theirs = ({k: t.shape for k, t in w.items()} for w in (tokenizer.state_dict(), weights))
    if ours != theirs:
        wrong = min(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
        raise TokenizerError(f"{folder / WEIGHTS} is not of {folder / CONFIG}: {wrong} differs; copy both again")
    tokenizer.load_state_dict(weights)
    if fingerprint(tokenizer) != saved:
        raise TokenizerError(f"{folder / WEIGHTS} is not what was saved: its fingerprint isn't that in {CONFIG}; "
                             "copy the folder again or train again")
    return tokenizer.eval()


def _read_config(path: Path) -> tuple[ConvTokenizer, str]:
    from pydantic import TypeAdapter

    try:
        about = json.loads(path.read_text())
        return TypeAdapter(ConvTokenizer).validate_python(about["config"], extra="forbid"), about["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        why = " ".join(str(error).split())
        raise TokenizerError(f"{path} does not describe an image tokenizer: {why}; copy it again") from None
