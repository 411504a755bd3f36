"""Liquid at toy scale: one table for words and codes, and words alone before there are any codes.

Differs from the paper: the backbone is fresh, so that a stage on sentences alone stands for its language model, whose
text is measured before and after; pairs are drawn half of the time, where the release's script draws a tenth of them.
What is told below was reached in 1,400 steps of the language model; now they are 2,000.
"""

from dataclasses import replace

from recipes.systems import liquid_7b
from recipes.toys import base
from unimm.config.data import Shapes, Use
from unimm.config.tokens import Codebook

recipe = replace(
    liquid_7b.recipe, name="liquid", about="Liquid at toy scale: a million parameters, 512 codes in their table.",
    text=base.TEXT, image_tokenizer=base.IMAGES, codebooks=(Codebook(name="visual", size=512),),
    layout=replace(liquid_7b.recipe.layout, sizes=base.SIZES, pixels_per_code=base.PIXELS_PER_CODE,
                   chat=base.CHAT, draw_words="{text}", caption_words=""), special_ids={},
    backbone=base.BACKBONE, image_in=base.TABLE,
    data=base.DATA | {"text": Shapes(part="sentences", count=20000, seed=4)},
    stages={
        "tokenizer": base.TOKENIZER,
        "words": replace(base.LANGUAGE, mix=(Use(data="text"),), steps=150, drop_context=0.0),
        "pretrain": replace(base.LANGUAGE, mix=(*base.MIX, Use(data="text", weight=0.1))),
    },
    sampling=base.SAMPLING, judge="shapes")
