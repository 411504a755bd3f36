"""A recipe: a system on its axes, its data, its stages, its sampling defaults.

Frozen values without torch: every recipe loads in milliseconds. A variant of an axis is a class of
its own with a `kind`, so that JSON, the command line and `match` agree on what it is.
"""

from dataclasses import field
from typing import Literal

from unimm.config import model
from unimm.config.check import ConfigError, config
from unimm.config.data import Source
from unimm.config.images import ConvTokenizer, DualTokenizer, ImageTokenizer, OfFeatures, OwnTokenizer
from unimm.config.sampling import Sampling
from unimm.config.stages import AnyStage, Contrast, Detokenize, NextToken
from unimm.config.tokens import Codebook, Continuous, Layout, SentencePieceText, TextTokenizer


@config()
class Recipe:
    """A system and how it is trained."""

    name: str
    about: str = ""
    """One sentence: what this is, and where its numbers come from."""
    text: TextTokenizer = SentencePieceText()
    image_tokenizer: ImageTokenizer = ConvTokenizer()
    features: model.VisionEncoder | None = None
    """A vision encoder that sees meaning: what a tokenizer is measured by, learns from or builds on. A fresh one is
    trained by a stage `Contrast`; it sees the tokenizer's size of image."""
    decoder: model.Decoder = model.TokenizerDecoder()
    """What draws the pixels of codes."""
    codebooks: tuple[Codebook, ...] = ()
    continuous: tuple[Continuous, ...] = ()
    layout: Layout
    special_ids: dict[str, int] = field(default_factory=dict)
    """Ids of markers where a release fixes them and its text tokenizer is not at hand or has no such name; other
    markers follow the text. "<reserved{n}>": 4 is every such marker, its id being its number plus 4."""
    backbone: model.Backbone = model.FreshBackbone()
    image_in: model.ImageIn = model.SharedTable()
    image_out: model.ImageOut = model.SharedSoftmax()
    data: dict[str, Source]
    stages: dict[str, AnyStage]
    sampling: Sampling = Sampling()
    judge: Literal["none", "shapes", "emoji"] = "none"
    """Which scores `unimm eval` computes beside losses."""

    @property
    def language(self) -> dict[str, NextToken]:
        """The stages of the language model."""
        return {name: stage for name, stage in self.stages.items() if isinstance(stage, NextToken)}

    def __post_init__(self):
        self._check_parts()
        for name, stage in self.stages.items():
            for use in stage.mix:
                if use.data not in self.data:
                    known = ", ".join(sorted(self.data)) or "none"
                    raise ConfigError(f"stage {name!r} uses data {use.data!r}, which the recipe lacks; it has: {known}")

    def _check_parts(self):
        """Every part has the other one that it works with."""
        tokenizer, stages = self.image_tokenizer, tuple(self.stages.values())
        losses = tokenizer.losses if isinstance(tokenizer, OwnTokenizer) else ()
        encoder = self.image_in.encoder if isinstance(self.image_in, model.VisionFeatures) else None
        looking = [part for part in (tokenizer, encoder, *losses, *stages)
                   if isinstance(part, DualTokenizer | model.RecipeVision | OfFeatures | Contrast)]
        if looking and self.features is None:
            raise ConfigError(f"{type(looking[0]).__name__} works with the recipe's features, but it has none; set "
                              "features to FreshVision, which a stage Contrast trains, or to PretrainedVision")
        if isinstance(self.decoder, model.FlowDecoder) != any(isinstance(stage, Detokenize) for stage in stages):
            raise ConfigError("Detokenize trains a FlowDecoder, but the recipe has one of the two alone; add the other")
        hidden = isinstance(self.decoder, model.FlowDecoder) and self.decoder.condition == "hidden"
        if hidden and not (self.language and isinstance(stages[-1], Detokenize)):
            raise ConfigError("the decoder reads the language model's hidden states, so its stage Detokenize must be "
                              "the last; put it there, or set decoder.condition to 'codes'")
        if isinstance(self.image_out, model.DepthHead) and all(book.depth == 1 for book in self.codebooks):
            raise ConfigError("image_out is a depth head, but every codebook has one code a position; give one a depth "
                              "above 1, or set image_out to SeparateHead")
        written = {level.space for level in self.layout.write.levels}
        if isinstance(self.image_out, model.FlowHead) and written.isdisjoint(space.name for space in self.continuous):
            raise ConfigError(f"image_out is a flow head, but the layout writes {', '.join(sorted(written))}, which is "
                              "none of `continuous`; write a continuous space, or set image_out to SharedSoftmax")
