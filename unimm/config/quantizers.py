"""The quantizer axis: from an encoder's vectors to codes."""


from unimm.config.check import check, config


@config(kind="fsq")
class FSQ:
    """Finite scalar quantization (Mentzer et al. 2023): each channel rounds to one of a few levels."""

    levels: tuple[int, ...] = (8, 8, 8)

    def __post_init__(self):
        check(self, len(self.levels) > 0 and min(self.levels) >= 2, "levels", "two or more levels in each channel")


@config(kind="vq", positive="size dim", fraction="decay")
class VQ:
    """Vector quantization with an exponential moving average codebook (van den Oord et al. 2017, A.1)."""

    size: int = 512
    dim: int = 16
    decay: float = 0.99
    commitment: float = 0.25
    dead_below: float = 0.1
    """Codes whose moving count falls below this are set to an encoder output of the batch."""


@config(kind="lfq")
class LFQ:
    """Lookup-free quantization (Yu et al. 2023, MAGVIT-v2): the signs of `bits` channels."""

    bits: int = 9
    entropy_weight: float = 0.02
    spherical: bool = False
    """Binary spherical quantization (Zhao et al. 2024): channels are normalised first."""

    def __post_init__(self):
        check(self, 1 <= self.bits <= 18, "bits", "between 1 and 18")


@config(kind="index_backprop", positive="size dim")
class IndexBackprop:
    """Index backpropagation (Shi et al. 2024, arXiv:2412.02692): the choice of a code is a softmax over all of them
    with a straight-through gradient, so that every code's vector learns from every position (ETT builds on it)."""

    size: int = 512
    dim: int = 16
    commitment: float = 0.25
    entropy_weight: float = 0.5
    """Of codes that are sure and all used. Below 0.2 few were used on coloured shapes, and pictures came back wrong."""


@config(kind="residual")
class Residual:
    """Residual quantization (Lee et al. 2022, arXiv:2203.01941; VILA-U): `depth` codes a position out of one codebook,
    each of what those before it left over; their vectors add up."""

    of: VQ = VQ()
    depth: int = 4

    def __post_init__(self):
        check(self, self.depth > 1, "depth", "2 or more; one code a position is VQ")


@config(kind="product", zero_or_more="disentangle")
class Product:
    """Factorized quantization (Bai et al. 2024, arXiv:2411.16681, FQGAN): `parts` codebooks of their own side by side,
    each with its share of the channels, kept from saying the same."""

    of: VQ = VQ()
    """One sub-codebook; its `dim` channels are one part's."""
    parts: int = 2
    disentangle: float = 0.0
    """Weight of the squared cosine between the parts' vectors of a position (FQGAN, eq. 3)."""

    def __post_init__(self):
        check(self, self.parts > 1, "parts", "2 or more; one codebook is VQ")


@config(kind="unquantized", positive="dim", zero_or_more="noise")
class Unquantized:
    """Continuous latents of `dim` channels, normalised, with noise in training so that a near one decodes alike."""

    dim: int = 16
    noise: float = 0.1
    """Standard deviation of that noise, the latents' own being 1."""


Quantizer = FSQ | VQ | LFQ | IndexBackprop | Residual | Product | Unquantized
