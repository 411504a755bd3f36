"""LaVIT at toy scale: a selector keeps the patches that say something, so that the count of codes follows the picture.

Differs from the paper: pixels are given back, not features alone; the decoder is the tokenizer's own; a code is what a
patch shows times where it is, since kept patches have no grid. Tried: places learned before a codebook of 2,048, which
gave 2 % of pictures back. What is told below was reached in 1,400 steps of the language model; now they are 2,000.
"""

from dataclasses import replace

from recipes.systems import lavit_7b
from recipes.toys import base
from unimm.config.images import ViTTokenizer
from unimm.config.model import TokenizerDecoder
from unimm.config.quantizers import VQ
from unimm.config.tokens import Codebook, LevelLayout, UpTo

recipe = replace(
    lavit_7b.recipe, name="lavit", about="LaVIT at toy scale: up to 16 codes an image, as many as it needs.",
    text=base.TEXT, features=None, decoder=TokenizerDecoder(), image_tokenizer=ViTTokenizer(
        image=32, downsample=8, width=96, layers=1, decoder_layers=2, keep=0.5, locality=6.0,
        quantizer=VQ(size=256, dim=16), foreground_weight=4.0),
    codebooks=(Codebook(name="visual", size=256 * 16),),
    layout=replace(
        lavit_7b.recipe.layout, sizes=base.SIZES, pixels_per_code=base.PIXELS_PER_CODE, chat=base.CHAT,
        write=replace(lavit_7b.recipe.layout.write, levels=(LevelLayout(space="visual", shape=UpTo(longest=16)),))),
    special_ids={}, backbone=base.BACKBONE, image_in=base.TABLE, data=base.DATA,
    stages={"tokenizer": replace(base.TOKENIZER, steps=1600), "pretrain": base.LANGUAGE},
    sampling=base.SAMPLING, judge="shapes")
