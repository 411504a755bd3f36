"""A recipe: a system on its axes, its data, its stages, its sampling defaults.

Frozen values without torch: every recipe loads in milliseconds. A variant of an axis is a class of
its own with a `kind`, so that JSON, the command line and `match` agree on what it is.
"""

from dataclasses import dataclass, field
from typing import Literal

from unimm.config.check import ConfigError, check, positive
from unimm.config.data import Source
from unimm.config.images import ConvTokenizer, ImageTokenizer
from unimm.config.model import Backbone, FreshBackbone, ImageIn, ImageOut, SharedSoftmax, SharedTable
from unimm.config.stages import NextToken, Reconstruct
from unimm.config.tokens import Codebook, Continuous, Layout, SentencePieceText, TextTokenizer


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Defaults of sampling, saved with every run: a score reproduces only with these."""

    guidance: float = 1.5
    temperature: float = 0.3
    top_k: int = 0
    """0: all allowed ids."""
    top_p: float = 1.0
    text_temperature: float = 0.0
    text_length: int = 64
    """The most text tokens of an answer."""
    positive: str = ""
    """Words added to a prompt for an image (Emu3)."""
    negative: str = ""
    """Words that the unconditional branch reads in place of the form that it had in training (Emu3)."""

    def __post_init__(self):
        check(self, self.temperature >= 0, "temperature", "0 (greedy) or more")
        check(self, self.text_temperature >= 0, "text_temperature", "0 (greedy) or more")
        check(self, self.top_k >= 0, "top_k", "0 (off) or more")
        check(self, 0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        positive(self, "text_length")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A system and how it is trained."""

    name: str
    about: str = ""
    """One sentence: what this is, and where its numbers come from."""
    text: TextTokenizer = SentencePieceText()
    image_tokenizer: ImageTokenizer = ConvTokenizer()
    codebooks: tuple[Codebook, ...]
    continuous: tuple[Continuous, ...] = ()
    layout: Layout
    special_ids: dict[str, int] = field(default_factory=dict)
    """Ids of markers where a release fixes them and its text tokenizer is not at hand or has no such name; other
    markers follow the text. "<reserved{n}>": 4 is every such marker, its id being its number plus 4."""
    backbone: Backbone = FreshBackbone()
    image_in: ImageIn = SharedTable()
    image_out: ImageOut = SharedSoftmax()
    data: dict[str, Source]
    stages: dict[str, Reconstruct | NextToken]
    sampling: Sampling = Sampling()
    judge: Literal["none", "shapes", "emoji"] = "none"
    """Which scores `unimm eval` computes beside losses."""

    @property
    def language(self) -> dict[str, NextToken]:
        """The stages of the language model."""
        return {name: stage for name, stage in self.stages.items() if isinstance(stage, NextToken)}

    def __post_init__(self):
        for name, stage in self.stages.items():
            for use in stage.mix:
                if use.data not in self.data:
                    known = ", ".join(sorted(self.data)) or "none"
                    raise ConfigError(f"stage {name!r} uses data {use.data!r}, which the recipe lacks; it has: {known}")
