"""How ids are chosen from logits, and how images are guided."""

from dataclasses import fields, replace

from unimm.config.check import ConfigError, config


@config(zero_or_more="temperature top_k adaptive_k", fraction="min_p", share="top_p")
class Choice:
    """How one id is chosen. Each filter keeps at least the likeliest id; all of them hold at once."""

    temperature: float = 1.0
    """0: the likeliest id."""
    top_k: int = 0
    """The most ids; 0: all allowed ones."""
    top_p: float = 1.0
    """The fewest likeliest ids whose probabilities add up to this."""
    min_p: float = 0.0
    """The least share of the likeliest id's probability that another one may have."""
    adaptive_k: int = 0
    """The most ids where top-k follows the logits' entropy (PURE, arXiv:2503.11073); 0: off."""


@config(positive="text_length window", zero_or_more="guidance image_guidance")
class Sampling:
    """Defaults of sampling, saved with every run: a score reproduces only with these."""

    image: Choice = Choice(temperature=0.3)
    text: Choice = Choice(temperature=0.0)
    guidance: float = 1.5
    """How far an image is moved from the form without a context towards the prompt; 1: not guided."""
    image_guidance: float = 0.0
    """How far towards the context's images alone, where it has some (three-way guidance); 0: not apart."""
    text_length: int = 64
    """The most text tokens of an answer."""
    positive: str = ""
    """Words added to a prompt for an image (Emu3)."""
    negative: str = ""
    """Words that the unconditional branch reads in place of the form that it had in training (Emu3)."""
    window: int = 1
    """The most ids that a row reads in a step; above 1: speculative Jacobi decoding of images."""

    @classmethod
    def settings(cls) -> dict[str, type]:
        """Every setting by its flat name: `temperature` and its like are of images, `text_temperature` of text."""
        choice = {f.name: f.type for f in fields(Choice)}
        own = {f.name: f.type for f in fields(cls) if f.type is not Choice}
        return own | choice | {f"text_{name}": kind for name, kind in choice.items()}

    def changed(self, **changes) -> "Sampling":
        """Differently set, each change by its flat name. Raises ConfigError for a name that is none."""
        for name in changes.keys() - self.settings().keys():
            raise ConfigError(f"sampling has no setting {name!r}; it has {', '.join(self.settings())}")
        choices = [f.name for f in fields(Choice)]
        image = {name: changes.pop(name) for name in choices if name in changes}
        text = {name: changes.pop(f"text_{name}") for name in choices if f"text_{name}" in changes}
        return replace(self, image=replace(self.image, **image), text=replace(self.text, **text), **changes)
