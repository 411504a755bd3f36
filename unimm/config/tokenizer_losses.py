"""What an image tokenizer of one's own may be asked for beside the pixels."""

from unimm.config.check import config


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
