"""Emu3 at toy scale: a header with the size, a mark at every row's end, images of three sizes and two shapes.

Differs from the paper: one stage draws and answers, where the release has a model for each; everything written is
learned, not codes alone, so that the model may begin an image by itself. Tried: three in ten pictures wide, not one in
seven, in 1,400 steps, not 2,000, drew 54 % of single objects right: places are learned for each shape anew.
"""

from dataclasses import replace

from recipes.systems import emu3_gen
from recipes.toys import base
from unimm.config.tokens import Codebook

recipe = replace(
    emu3_gen.recipe, name="emu3", about="Emu3 at toy scale: images of 4 x 4, 4 x 6 and 6 x 4 codes.",
    text=base.TEXT, image_tokenizer=replace(base.IMAGES, any_size=True),
    codebooks=(Codebook(name="visual", size=512),),
    layout=replace(emu3_gen.recipe.layout, sizes=((4, 4), (4, 6), (6, 4)), pixels_per_code=base.PIXELS_PER_CODE,
                   learn="all", chat=base.CHAT),
    special_ids={}, backbone=base.BACKBONE, image_in=base.TABLE,
    data={"pairs": replace(base.PAIRS, wide=0.15), "chats": replace(base.CHATS, wide=0.15)},
    stages={"tokenizer": base.TOKENIZER, "pretrain": base.LANGUAGE},
    sampling=base.SAMPLING, judge="shapes")
