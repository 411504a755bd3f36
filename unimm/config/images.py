"""The image tokenizer axis: pixels to codes and back. One is trained by the run, the others are published ones."""

from dataclasses import dataclass
from typing import Literal

from unimm.config.check import check, fraction, positive, zero_or_more


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
        zero_or_more(self, "l1")


Fit = Literal["square", "short_side", "area", "within", "sizes"]
Filter = Literal["bicubic", "lanczos"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the published VQGANs share: a pyramid of convolutions around a codebook (see `unimm.images.vqgan`).

    Levels of the pyramid count from 0 at the size of the image; each halves the one before.
    """

    image: int
    """Height and width in pixels of a square image; images of other shapes follow from `fit`."""
    weights: str = ""
    """The release's weights: a .safetensors file, or a folder with one or with shards and their index.
    Empty: fresh weights, which a stage then has to train."""
    unpickle: bool = False
    """Read `weights` from a pickle too (.ckpt, .pt, .bin), as tensors only: whatever else it holds is refused."""
    fit: Fit = "short_side"
    """How a picture gets its size (see `unimm.images.prepare`)."""
    filter: Filter = "bicubic"
    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Channels at each level, times `width`."""
    blocks: int = 2
    """Residual blocks at each level of the encoder; the decoder has one more."""
    attention: tuple[int, ...] = ()
    """Levels with attention after each block; the middle has it always."""
    latent: int = 256
    """Channels that the encoder ends and the decoder begins with."""
    size: int
    """How many codes."""
    dim: int
    """Channels of a code's vector."""
    codebook: str = "visual"

    @property
    def downsample(self) -> int:
        """Pixels to a code, each way."""
        return 2 ** (len(self.multipliers) - 1)

    def __post_init__(self):
        positive(self, "image", "width", "blocks", "latent", "size", "dim")
        check(self, len(self.multipliers) > 0 and min(self.multipliers) > 0, "multipliers", "numbers above 0")
        check(self, self.width % 32 == 0, "width", "a multiple of 32, the groups of its norms")
        check(self, self.image % self.downsample == 0, "image", f"a multiple of {self.downsample}, pixels to a code")
        known = all(0 <= level < len(self.multipliers) for level in self.attention)
        check(self, known, "attention", f"levels below {len(self.multipliers)}")


@dataclass(frozen=True, kw_only=True)
class Chameleon(Published):
    """Chameleon's VQGAN, also Anole's, Liquid's and Lumina-mGPT's: 8,192 codes of 16 x 16 pixels."""

    image: int = 512
    filter: Filter = "lanczos"
    size: int = 8192
    dim: int = 256
    decoder: bool = True
    """False for weights without one, such as transformers' Chameleon: such a tokenizer encodes only."""
    kind: Literal["chameleon"] = "chameleon"


@dataclass(frozen=True, kw_only=True)
class Emu3(Published):
    """Emu3-VisionTokenizer: 32,768 codes of 8 x 8 pixels, or of `frames` times that in a video."""

    image: int = 720
    fit: Fit = "within"
    width: int = 256
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    attention: tuple[int, ...] = (3,)
    latent: int = 4
    size: int = 32768
    dim: int = 4
    frames: int = 4
    pixels: tuple[int, int] = (512 * 512, 1024 * 1024)
    """The least and the most pixels of an image, where `fit` is 'within'."""
    kind: Literal["emu3"] = "emu3"

    def __post_init__(self):
        super().__post_init__()
        check(self, self.frames > 0 and self.frames & (self.frames - 1) == 0, "frames", "a power of two")
        check(self, 0 < self.pixels[0] <= self.pixels[1], "pixels", "two numbers above 0, the smaller one first")
        check(self, self.latent == self.dim, "latent", f"dim ({self.dim}): both pass the same temporal layers")


@dataclass(frozen=True, kw_only=True)
class LlamaGen(Published):
    """VQ-16 of LlamaGen and of Janus: 16,384 codes of 16 x 16 pixels, unit vectors of 8 channels."""

    image: int = 384
    """Janus's; LlamaGen's own is 256."""
    attention: tuple[int, ...] = (4,)
    size: int = 16384
    dim: int = 8
    kind: Literal["llamagen"] = "llamagen"


@dataclass(frozen=True, kw_only=True)
class MoVQ(Published):
    """SBER-MoVQGAN 270M: 16,384 codes of 8 x 8 pixels, a decoder whose norms read the codes."""

    image: int = 512
    fit: Fit = "square"
    width: int = 256
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    attention: tuple[int, ...] = (3,)
    latent: int = 4
    size: int = 16384
    dim: int = 4
    kind: Literal["movq"] = "movq"


@dataclass(frozen=True, kw_only=True)
class IBQ(Published):
    """Emu3.5's tokenizer, index backpropagation quantization: 131,072 codes of 16 x 16 pixels.

    SEED-Voken's own are IBQ(image=256, fit="short_side", size=16384) and of 1,024, 8,192 and 262,144 codes.
    """

    image: int = 1024
    fit: Fit = "area"
    blocks: int = 4
    attention: tuple[int, ...] = (4,)
    size: int = 131072
    dim: int = 256
    kind: Literal["ibq"] = "ibq"


ImageTokenizer = ConvTokenizer | Chameleon | Emu3 | LlamaGen | MoVQ | IBQ
