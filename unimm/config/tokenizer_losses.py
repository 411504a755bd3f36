"""What an image tokenizer of one's own may be asked for beside the pixels."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Perceptual:
    """Distance of the recipe's `features` of what came back to those of the picture (after LPIPS, arXiv:1801.03924)."""

    weight: float = 1.0
    kind: Literal["perceptual"] = "perceptual"


@dataclass(frozen=True, kw_only=True)
class Gram:
    """Distance of the Gram matrices of the recipe's `features`: textures (Gatys et al. 2016; AToken)."""

    weight: float = 1.0
    kind: Literal["gram"] = "gram"


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """Hinge loss of a patch discriminator, which learns beside the tokenizer (Esser et al. 2021, arXiv:2012.09841)."""

    weight: float = 0.1
    after: int = 0
    """Forwards before the tokenizer is shown what the discriminator thinks."""
    kind: Literal["adversarial"] = "adversarial"


@dataclass(frozen=True, kw_only=True)
class Contrastive:
    """The quantized vectors of a picture and its caption find each other in the batch (SEED, arXiv:2307.08041), by a
    sigmoid loss (SigLIP, arXiv:2303.15343)."""

    weight: float = 1.0
    kind: Literal["contrastive"] = "contrastive"


@dataclass(frozen=True, kw_only=True)
class Distill:
    """The recipe's `features` of a picture are to be read from its quantized vectors (1 - cosine)."""

    weight: float = 1.0
    kind: Literal["distill"] = "distill"


TokenizerLoss = Perceptual | Gram | Adversarial | Contrastive | Distill
