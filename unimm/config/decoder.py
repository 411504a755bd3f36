"""The decoder axis: what draws the pixels of an image's codes."""


from unimm.config.check import config


@config(kind="tokenizer")
class TokenizerDecoder:
    """The image tokenizer's own decoder."""


@config(kind="flow", positive="scale patch width layers steps foreground_weight")
class FlowDecoder:
    """A diffusion (rectified-flow) decoder that draws from the codes' vectors, `scale` times as large as the image
    tokenizer's picture (ILLUME+, arXiv:2504.01934, 3.4). Trained by a stage `Detokenize`."""

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
