"""TokenFlow at toy scale: one index addresses a semantic and a pixel codebook, chosen by their joint distance.

Differs from the paper: one model draws and answers; one scale of codes; the semantic encoder is trained here, by
contrast, and goes on learning with the tokenizer. Its features see the whole picture, so that of 512 indices the same
patch has many (perplexity 300, where a patch alone gives 24), which are hard to write: 34 % of single objects were
drawn right, and a tenth of the weight of the features' distance left the perplexity as it was. Of 64 indices most are
left to the pixels; they answer 2.2 points more than 64 indices of pixels alone, and draw fewer pictures right.
"""

from dataclasses import replace

from recipes.systems import tokenflow_t2i_7b
from recipes.toys import base
from unimm.config.images import DualTokenizer
from unimm.config.model import CodeVectors
from unimm.config.quantizers import VQ
from unimm.config.tokens import Codebook

recipe = replace(
    tokenflow_t2i_7b.recipe, name="tokenflow", about="TokenFlow at toy scale: 64 indices of two codebooks.",
    text=base.TEXT, features=base.FEATURES, image_tokenizer=DualTokenizer(
        image=32, downsample=8, width=96, index="shared", semantic=VQ(size=64, dim=8), pixel=VQ(size=64, dim=16),
        semantic_weight=0.05, tune=True, encoder_kernel=1, foreground_weight=4.0),
    codebooks=(Codebook(name="visual", size=64),),
    layout=replace(tokenflow_t2i_7b.recipe.layout, sizes=base.SIZES, pixels_per_code=base.PIXELS_PER_CODE,
                   chat=base.CHAT),
    special_ids={}, backbone=base.BACKBONE, image_in=CodeVectors(depth=2, places=24),
    data=base.DATA, stages={"features": base.SEEN, "tokenizer": base.TOKENIZER, "pretrain": base.LANGUAGE},
    sampling=base.SAMPLING, judge="shapes")
