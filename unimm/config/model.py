"""The model axes: the backbone, how it reads images, how it writes them, and what draws the pixels of their codes."""

from typing import Literal

from unimm.config.check import config


@config(kind="fresh", positive="width layers heads kv_heads mlp rope_theta", whole="width/heads heads/kv_heads")
class FreshBackbone:
    """A randomly initialised transformers causal LM, for the laptop and for tests."""

    family: Literal["qwen3", "qwen2", "llama", "mistral", "gemma2", "gemma3"] = "qwen3"
    width: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int = 6
    mlp: int = 512
    rope_theta: float = 10000.0


@config(kind="pretrained")
class PretrainedBackbone:
    """A published transformers causal LM: a local folder, or a hub id where a hub is reachable.

    Of a released Chameleon, Emu3 or Janus in transformers' format the language model and its head are taken.
    """

    path: str
    rows: Literal["text", "all"] = "text"
    """Which rows of its table are trained ones: as many as its tokenizer has ids, so that those of codes and markers
    behind them start anew; or all, as in a released unified model such as Liquid. Of Chameleon, Emu3 and Janus all
    are."""


Backbone = FreshBackbone | PretrainedBackbone


Rows = Literal["normal", "mean", "covariance", "codebook"]
"""How rows of codes and markers start.

normal      around 0, with the old rows' spread
mean        the mean of the old rows
covariance  drawn from the normal with the old rows' mean and covariance, the second times `spread` squared
            (Hewitt 2021, nlp.stanford.edu/~johnhew/vocab-expansion.html)
codebook    a random projection of the codes' own vectors, so that like codes start alike; markers as covariance

A fresh model has no old rows: all but codebook start as normal then.
"""


@config(kind="shared_table", zero_or_more="places spread")
class SharedTable:
    """The LLM reads codes as rows of its own embedding table (Liquid, Chameleon, Emu3)."""

    rows: Rows = "covariance"
    spread: float = 1.0
    """Of new rows around their mean, as a share of the old rows'. transformers' mean resizing has 3.2e-5."""
    places: int = 0
    """Above 0: a code is read with a learned vector for its place in the image, of this many places. Helps a model
    that trains for minutes to say where things are; a stock transformers class has no such vectors."""


@config(kind="fresh", positive="patch width layers heads", whole="width/heads")
class FreshVision:
    """A randomly initialised vision transformer of SigLIP's make."""

    patch: int = 8
    """Pixels to a feature, each way."""
    width: int = 64
    layers: int = 2
    heads: int = 4


@config(kind="pretrained")
class PretrainedVision:
    """A published SigLIP, or the encoder of a released Janus: a local folder, or a hub id where a hub is reachable."""

    path: str


VisionEncoder = FreshVision | PretrainedVision


@config(kind="recipe")
class RecipeVision:
    """The recipe's own `features`, as the run has trained them, or as they were published."""


@config(kind="vision_features", positive="image depth dim")
class VisionFeatures:
    """A read image is a vision encoder's features through an aligner, a written one codes of a table of their own
    through another (Janus).

    The layout's `read` names the continuous space of the features; the codebook is one with `shared=False`.
    Both aligners are `depth` linear layers with GELU between. A stage trains or freezes `vision`, `aligner`,
    `codes` and `code_aligner` by these names. Codes of a shared codebook are read through the language model's own
    table, so that there are no `codes` then (ILLUME+).
    """

    encoder: FreshVision | PretrainedVision | RecipeVision = FreshVision()
    image: int = 384
    """Height and width in pixels of what the encoder sees: the whole picture, padded to a square."""
    background: tuple[int, int, int] = (127, 127, 127)
    """The padding's colour."""
    depth: int = 2
    dim: int = 8
    """Channels of a code's vector in its table."""
    weights: str = ""
    """A released Janus, whose aligners and table are taken: a local folder or a hub id. Empty: fresh ones."""


@config(kind="code_vectors", positive="depth", zero_or_more="places")
class CodeVectors:
    """Codes are read as the image tokenizer's own vectors of them through a projector of `depth` linear layers
    (VILA-U, TokenFlow); several codes a position as what their vectors make together.

    In a stage with `reconstruction` above 0 pictures are read instead, and the gradient reaches the tokenizer (ETT).
    A stage trains or freezes `tokenizer` and `aligner` by these names; the first is frozen but in such a stage.
    """

    depth: int = 2
    places: int = 0
    """As of `SharedTable`."""


@config(kind="latent_vectors", positive="depth", zero_or_more="places")
class LatentVectors:
    """Continuous latents are read through the tokenizer's expander, if it has one, and a projector of `depth` linear
    layers (Ming-UniVision)."""

    depth: int = 2
    places: int = 0
    """As of `SharedTable`."""


ImageIn = SharedTable | VisionFeatures | CodeVectors | LatentVectors


@config(kind="shared_softmax")
class SharedSoftmax:
    """The LLM writes codes through its own softmax over the extended vocabulary."""

    rows: Rows | Literal["as_read", "zero"] = "as_read"
    """How the head's rows start where it is not tied to the table: as `image_in.rows` says, or otherwise; at zero the
    first loss at every new id is that of its mean, and gradients into the old model begin small."""


@config(kind="separate_head", zero_or_more="width")
class SeparateHead:
    """The LLM writes codes through a softmax of their own, over one codebook, behind two linear layers (Janus)."""

    width: int = 0
    """Features between the two layers; 0: as many as the language model's."""
    weights: str = ""
    """A released Janus, whose head is taken: a local folder or a hub id. Empty: a fresh one."""


@config(kind="depth_head", positive="width layers heads", whole="width/heads")
class DepthHead:
    """A small transformer over the codes of one position, each predicted from the hidden state and the codes before it
    (RQ-Transformer, arXiv:2203.01941; VILA-U, FQGAN)."""

    width: int = 128
    layers: int = 2
    heads: int = 4


@config(kind="flow_head", positive="width layers steps repeat")
class FlowHead:
    """A small network that carries noise to the next latent by rectified flow, given the hidden state (MAR,
    arXiv:2406.11838; Ming-UniVision)."""

    width: int = 256
    layers: int = 3
    steps: int = 16
    """Euler steps from noise to a latent."""
    repeat: int = 4
    """Times drawn for each position in training."""


ImageOut = SharedSoftmax | SeparateHead | DepthHead | FlowHead


@config(kind="tokenizer")
class TokenizerDecoder:
    """The image tokenizer's own decoder."""


@config(kind="flow", positive="scale patch width layers steps foreground_weight")
class FlowDecoder:
    """A diffusion (rectified-flow) decoder that draws `scale` times as large as the image tokenizer's picture (ILLUME+,
    arXiv:2504.01934, 3.4). Trained by a stage `Detokenize`."""

    condition: Literal["codes", "hidden"] = "codes"
    """What it draws from: the codes' vectors, or the language model's last hidden states that the codes were written
    from (Emu, arXiv:2307.05222, 2.1, whose decoder reads what the language model gives); then its stage is the last."""
    scale: int = 2
    patch: int = 8
    """Pixels, each way, that are one position of its network."""
    width: int = 32
    """Channels at the first resolution, doubled at the second."""
    layers: int = 1
    """Residual blocks at each resolution."""
    steps: int = 4
    """Euler steps from noise to a picture."""
    foreground_weight: float = 1.0
    """Weight of pixels that differ from the image's border colour, as of the tokenizers."""


Decoder = TokenizerDecoder | FlowDecoder
