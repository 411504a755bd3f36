"""The image tokenizer axis: pixels to codes and back."""

from dataclasses import dataclass
from typing import Literal

from unimm.config.check import check, fraction, positive


@dataclass(frozen=True, kw_only=True)
class FSQ:
    """Finite scalar quantization (Mentzer et al. 2023): each channel rounds to one of a few levels."""

    levels: tuple[int, ...] = (8, 8, 8)
    kind: Literal["fsq"] = "fsq"

    def __post_init__(self):
        check(self, len(self.levels) > 0 and min(self.levels) >= 2, "levels", "two or more levels in each channel")


@dataclass(frozen=True, kw_only=True)
class VQ:
    """Vector quantization with an exponential moving average codebook (van den Oord et al. 2017, A.1)."""

    size: int = 512
    dim: int = 16
    decay: float = 0.99
    commitment: float = 0.25
    dead_below: float = 0.1
    """Codes whose moving count falls below this are set to an encoder output of the batch."""
    kind: Literal["vq"] = "vq"

    def __post_init__(self):
        positive(self, "size", "dim")
        fraction(self, "decay")


@dataclass(frozen=True, kw_only=True)
class LFQ:
    """Lookup-free quantization (Yu et al. 2023, MAGVIT-v2): the signs of `bits` channels."""

    bits: int = 9
    entropy_weight: float = 0.02
    spherical: bool = False
    """Binary spherical quantization (Zhao et al. 2024): channels are normalised first."""
    kind: Literal["lfq"] = "lfq"

    def __post_init__(self):
        check(self, 1 <= self.bits <= 18, "bits", "between 1 and 18")


Quantizer = FSQ | VQ | LFQ


@dataclass(frozen=True, kw_only=True)
class ConvTokenizer:
    """Patches, residual convolutions on the grid of codes, a quantizer, and the way back (see `unimm.images.conv`)."""

    image: int = 32
    """Height and width in pixels."""
    downsample: int = 8
    width: int = 96
    blocks: int = 1
    """Residual blocks in the encoder and in the decoder, at the resolution of the codes."""
    encoder_kernel: int = 3
    """1 makes a code depend on its own patch alone: fewer distinct codes where patches repeat."""
    quantizer: Quantizer = FSQ()
    foreground_weight: float = 1.0
    """Weight of pixels that differ from the image's border colour; small objects drown in background at 1."""
    l1: float = 0.5
    codebook: str = "visual"
    kind: Literal["conv"] = "conv"

    def __post_init__(self):
        positive(self, "image", "width", "blocks", "foreground_weight")
        power = self.downsample > 0 and self.downsample & (self.downsample - 1) == 0
        check(self, power, "downsample", "a power of two")
        check(self, self.image % self.downsample == 0, "image", f"a multiple of downsample ({self.downsample})")
        check(self, self.encoder_kernel in (1, 3), "encoder_kernel", "1 or 3")
        check(self, self.l1 >= 0, "l1", "0 or more")


ImageTokenizer = ConvTokenizer
