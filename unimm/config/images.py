"""The image tokenizer axis: pixels to codes and back. Some are trained by the run, and may be asked for more than the
pixels; the others are published ones."""

from dataclasses import replace
from typing import Literal

from unimm.config.check import check, config
from unimm.config.quantizers import FSQ, LFQ, VQ, IndexBackprop, Quantizer


@config()
class Asked:
    """What all share."""

    weight: float = 1.0


class OfFeatures(Asked):
    """What is asked through the recipe's `features`."""


@config(kind="perceptual")
class Perceptual(OfFeatures):
    """Distance of the recipe's `features` of what came back to those of the picture (after LPIPS, arXiv:1801.03924)."""


@config(kind="gram")
class Gram(OfFeatures):
    """Distance of the Gram matrices of the recipe's `features`: textures (Gatys et al. 2016; AToken)."""


@config(kind="adversarial")
class Adversarial(Asked):
    """Hinge loss of a patch discriminator, which learns beside the tokenizer (Esser et al. 2021, arXiv:2012.09841)."""

    weight: float = 0.1
    after: int = 0
    """Forwards before the tokenizer is shown what the discriminator thinks."""


@config(kind="contrastive")
class Contrastive(Asked):
    """The quantized vectors of a picture and its caption find each other in the batch (SEED, arXiv:2307.08041), by a
    sigmoid loss (SigLIP, arXiv:2303.15343)."""


@config(kind="distill")
class Distill(OfFeatures):
    """The recipe's `features` of a picture are to be read from its quantized vectors (1 - cosine)."""


TokenizerLoss = Perceptual | Gram | Adversarial | Contrastive | Distill


@config(positive="image downsample width foreground_weight", zero_or_more="l1", whole="image/downsample")
class OwnTokenizer:
    """What the tokenizers that a run trains share."""

    image: int = 32
    """Height and width in pixels."""
    downsample: int = 8
    """Pixels to a code, or to a patch, each way."""
    width: int = 96
    foreground_weight: float = 1.0
    """Weight of pixels that differ from the image's border colour; small objects drown in background at 1."""
    l1: float = 0.5
    losses: tuple[TokenizerLoss, ...] = ()
    """What is asked of it beside the pixels."""
    codebook: str = "visual"


@config(kind="conv", positive="blocks")
class ConvTokenizer(OwnTokenizer):
    """Patches, residual convolutions on the grid of codes, a quantizer, and the way back (see `unimm.images.conv`)."""

    blocks: int = 1
    """Residual blocks in the encoder and in the decoder, at the resolution of the codes."""
    encoder_kernel: int = 3
    """1 makes a code depend on its own patch alone: fewer distinct codes where patches repeat."""
    quantizer: Quantizer = FSQ()
    any_size: bool = False
    """Whether pictures are brought to the nearest of the layout's sizes, not to the square of `image`."""

    def __post_init__(self):
        check(self, self.downsample & (self.downsample - 1) == 0, "downsample", "a power of two")
        check(self, self.encoder_kernel in (1, 3), "encoder_kernel", "1 or 3")


@config(kind="vit", positive="layers heads decoder_layers", zero_or_more="queries expander keep_weight locality",
        fraction="drop_tail", share="keep", whole="width/heads")
class ViTTokenizer(OwnTokenizer):
    """Patches through a vision transformer to tokens that are no grid, and back (see `unimm.images.vit`).

    queries   so many learned queries read the patches (SEED); 0: the patches themselves are the tokens
    keep      the share of patches that a selector keeps on average, so that the count varies (LaVIT); 1: all
    expander  causal layers from latents to features that the language model reads, taught by Distill (MingTok)
    """

    width: int = 128
    layers: int = 2
    heads: int = 4
    decoder_layers: int = 2
    locality: float = 0.0
    """How much less the encoder's attention scores what lies one patch further away, a query's place being the k-th
    cell of the picture (as ALiBi, arXiv:2108.12409, in two dimensions). 0: nothing is nearer. A token that depends on
    little is easier to learn for a language model."""
    queries: int = 0
    causal: bool = False
    """Whether a token sees only those before it, so that a prefix is decoded like any other image."""
    drop_tail: float = 0.0
    """Share of training pictures whose tokens are cut off at a random place, so that a prefix is enough to draw."""
    keep: float = 1.0
    keep_weight: float = 1.0
    """Of the squared distance from `keep` in the loss (LaVIT, eq. 6)."""
    expander: int = 0
    quantizer: Quantizer = VQ()

    def __post_init__(self):
        rest = self.queries or self.expander or self.drop_tail
        check(self, self.keep == 1 or not rest, "keep", "1 where there are queries, an expander or drop_tail")
        check(self, self.queries or not self.causal, "causal", "False without queries")
        single = isinstance(self.quantizer, FSQ | VQ | LFQ | IndexBackprop)
        check(self, self.keep == 1 or single, "quantizer", "of one code a position where patches are dropped")


@config(kind="dual", positive="blocks semantic_weight")
class DualTokenizer(OwnTokenizer):
    """Two views of one picture: meaning, from the recipe's `features`, and pixels, from convolutions of its own.

    index "shared"    one index addresses both codebooks, chosen by their joint distance (TokenFlow, arXiv:2412.03069)
    index "separate"  two levels of codes, meaning before pixels (ILLUME+, arXiv:2504.01934)

    `downsample` is that of the pixel level; the semantic level has the grid of the features, or where the index is
    shared the two are one. The decoder draws from both; another one gives the features back from the meaning alone.
    """

    blocks: int = 1
    encoder_kernel: int = 3
    """1 makes what the pixel encoder says depend on its own patch alone."""
    index: Literal["shared", "separate"] = "shared"
    semantic: VQ = VQ()
    pixel: VQ = VQ()
    semantic_weight: float = 1.0
    """Of the distance to the semantic code, where the index is shared, and of the features' reconstruction."""
    tune: bool = False
    """Whether the features' encoder learns too (TokenFlow); else it stays as it is (ILLUME+)."""
    semantic_codebook: str = "semantic"
    """Beside `codebook`, which is that of the pixel codes, or of the one index."""

    def __post_init__(self):
        check(self, self.encoder_kernel in (1, 3), "encoder_kernel", "1 or 3")
        alike = replace(self.semantic, dim=self.pixel.dim) == self.pixel
        check(self, self.index == "separate" or alike, "semantic", "as pixel but for dim, where they share an index")
        check(self, self.semantic_codebook != self.codebook, "semantic_codebook", "another name than codebook")


Fit = Literal["square", "short_side", "area", "within", "sizes"]
Filter = Literal["bicubic", "lanczos"]


@config(positive="image width blocks latent size dim")
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
        check(self, len(self.multipliers) > 0 and min(self.multipliers) > 0, "multipliers", "numbers above 0")
        check(self, self.width % 32 == 0, "width", "a multiple of 32, the groups of its norms")
        check(self, self.image % self.downsample == 0, "image", f"a multiple of {self.downsample}, pixels to a code")
        known = all(0 <= level < len(self.multipliers) for level in self.attention)
        check(self, known, "attention", f"levels below {len(self.multipliers)}")


@config(kind="chameleon")
class Chameleon(Published):
    """Chameleon's VQGAN, also Anole's, Liquid's and Lumina-mGPT's: 8,192 codes of 16 x 16 pixels."""

    image: int = 512
    filter: Filter = "lanczos"
    size: int = 8192
    dim: int = 256
    decoder: bool = True
    """False for weights without one, such as transformers' Chameleon: such a tokenizer encodes only."""


@config()
class Finer(Published):
    """8 x 8 pixels to a code, of 4 channels."""

    width: int = 256
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    attention: tuple[int, ...] = (3,)
    latent: int = 4
    dim: int = 4


@config(kind="emu3")
class Emu3(Finer):
    """Emu3-VisionTokenizer: 32,768 codes of 8 x 8 pixels, or of `frames` times that in a video."""

    image: int = 720
    fit: Fit = "within"
    size: int = 32768
    frames: int = 4
    pixels: tuple[int, int] = (512 * 512, 1024 * 1024)
    """The least and the most pixels of an image, where `fit` is 'within'."""

    def __post_init__(self):
        check(self, self.frames > 0 and self.frames & (self.frames - 1) == 0, "frames", "a power of two")
        check(self, 0 < self.pixels[0] <= self.pixels[1], "pixels", "two numbers above 0, the smaller one first")
        check(self, self.latent == self.dim, "latent", f"dim ({self.dim}): both pass the same temporal layers")


@config(kind="llamagen")
class LlamaGen(Published):
    """VQ-16 of LlamaGen and of Janus: 16,384 codes of 16 x 16 pixels, unit vectors of 8 channels."""

    image: int = 384
    """Janus's; LlamaGen's own is 256."""
    attention: tuple[int, ...] = (4,)
    size: int = 16384
    dim: int = 8


@config(kind="movq")
class MoVQ(Finer):
    """SBER-MoVQGAN 270M: 16,384 codes of 8 x 8 pixels, a decoder whose norms read the codes."""

    image: int = 512
    fit: Fit = "square"
    size: int = 16384


@config(kind="ibq")
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


ImageTokenizer = ConvTokenizer | ViTTokenizer | DualTokenizer | Chameleon | Emu3 | LlamaGen | MoVQ | IBQ
