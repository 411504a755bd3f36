"""Liquid on Gemma 2B, the smaller backbone that its training guide names (FoundationVision/Liquid, TRAIN.md).

A checkpoint was released at 7 B only (README, 0.5 to 32 B unchecked), so this one begins from Gemma.
"""

from dataclasses import replace

from recipes.systems import liquid_7b
from unimm.config.model import PretrainedBackbone
from unimm.config.tokens import PretrainedText

recipe = replace(
    liquid_7b.recipe,
    name="liquid_2b",
    about="Liquid on Gemma 2B, to be trained: no checkpoint of this size was released.",
    text=PretrainedText(path="google/gemma-2b", size=256000),
    backbone=PretrainedBackbone(path="google/gemma-2b"),
)
