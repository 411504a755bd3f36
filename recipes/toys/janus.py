"""Janus at toy scale: pictures are read as features of an encoder, written as codes of a table and head of their own.

Differs from the paper: the encoder is fresh and small and learns from the first step, where SigLIP is a pretrained one;
one stage stands for the paper's three.
"""

from dataclasses import replace

from recipes.systems import janus_pro_1b
from recipes.toys import base
from unimm.config.model import SeparateHead, VisionFeatures
from unimm.config.tokens import Codebook, Continuous

recipe = replace(
    janus_pro_1b.recipe, name="janus", about="Janus at toy scale: features in, codes of an own head out.",
    text=base.TEXT, image_tokenizer=base.IMAGES, codebooks=(Codebook(name="visual", size=512, shared=False),),
    continuous=(Continuous(name="vision", channels=64, placeholder="<image_placeholder>"),),
    layout=replace(janus_pro_1b.recipe.layout, sizes=base.SIZES, pixels_per_code=base.PIXELS_PER_CODE,
                   chat=base.CHAT), special_ids={},
    backbone=base.BACKBONE, image_in=VisionFeatures(encoder=base.FEATURES, image=32, dim=16),
    image_out=SeparateHead(), data=base.DATA,
    stages={"tokenizer": base.TOKENIZER, "pretrain": base.LANGUAGE},
    sampling=base.SAMPLING, judge="shapes")
