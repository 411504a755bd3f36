"""The model axes: the backbone, how it reads images, how it writes them."""

from dataclasses import dataclass
from typing import Literal

from unimm.config.check import check, positive


@dataclass(frozen=True, kw_only=True)
class FreshBackbone:
    """A randomly initialised transformers causal LM, for the laptop and for tests."""

    family: Literal["qwen3", "llama"] = "qwen3"
    width: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int = 6
    mlp: int = 512
    rope_theta: float = 10000.0
    kind: Literal["fresh"] = "fresh"

    def __post_init__(self):
        positive(self, "width", "layers", "heads", "kv_heads", "mlp", "rope_theta")
        check(self, self.width % self.heads == 0, "width", f"a multiple of heads ({self.heads})")
        check(self, self.heads % self.kv_heads == 0, "heads", f"a multiple of kv_heads ({self.kv_heads})")


@dataclass(frozen=True, kw_only=True)
class PretrainedBackbone:
    """A published transformers causal LM: a local folder, or a hub id where a hub is reachable."""

    path: str
    kind: Literal["pretrained"] = "pretrained"


Backbone = FreshBackbone | PretrainedBackbone


@dataclass(frozen=True, kw_only=True)
class SharedTable:
    """The LLM reads codes as rows of its own embedding table (Liquid, Chameleon, Emu3)."""

    rows: Literal["normal", "mean", "codebook"] = "mean"
    """How new rows start: normal with the table's spread; mean of the old rows plus noise of their
    spread; a random projection of the codes' own vectors, so that like codes start alike."""
    places: int = 0
    """Above 0: a code is read with a learned vector for its place in the image, of this many places. Helps a model
    that trains for minutes to say where things are; a stock transformers class has no such vectors."""
    kind: Literal["shared_table"] = "shared_table"

    def __post_init__(self):
        check(self, self.places >= 0, "places", "0 (none) or more")


@dataclass(frozen=True, kw_only=True)
class SharedSoftmax:
    """The LLM writes codes through its own softmax over the extended vocabulary."""

    kind: Literal["shared_softmax"] = "shared_softmax"
