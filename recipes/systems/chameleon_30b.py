"""Chameleon 34B, released as 30B: another size of chameleon_7b (arXiv:2405.09818)."""

from dataclasses import replace

from recipes.systems import chameleon_7b
from unimm.config.model import PretrainedBackbone
from unimm.config.tokens import PretrainedText

recipe = replace(
    chameleon_7b.recipe,
    name="chameleon_30b",
    about="Chameleon 34B, released as 30B: chameleon_7b at another size.",
    text=PretrainedText(path="facebook/chameleon-30b", size=65536),
    backbone=PretrainedBackbone(path="facebook/chameleon-30b"),
)
