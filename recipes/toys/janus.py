"""Janus at toy scale: pictures are read as features of an encoder, written as codes of a table and head of their own.

Differs from the paper: the encoder is small, trained here by contrast, as SigLIP was elsewhere; one stage stands for
the paper's three, in which the encoder goes on learning at a twentieth of the rate. Tried: at the full rate questions
of colour were answered as by chance (29 %), and 55 % of all.
"""

from dataclasses import replace

from recipes.systems import janus_pro_1b
from recipes.toys import base
from unimm.config.model import RecipeVision, SeparateHead, VisionFeatures
from unimm.config.tokens import Codebook, Continuous
from unimm.config.trains import Trains

recipe = replace(
    janus_pro_1b.recipe, name="janus", about="Janus at toy scale: features in, codes of an own head out.",
    text=base.TEXT, features=base.FEATURES, image_tokenizer=base.IMAGES,
    codebooks=(Codebook(name="visual", size=512, shared=False),),
    continuous=(Continuous(name="vision", channels=64, placeholder="<image_placeholder>"),),
    layout=replace(janus_pro_1b.recipe.layout, sizes=base.SIZES, pixels_per_code=base.PIXELS_PER_CODE,
                   chat=base.CHAT), special_ids={},
    backbone=base.BACKBONE, image_in=VisionFeatures(encoder=RecipeVision(), image=32, dim=16),
    image_out=SeparateHead(), data=base.DATA,
    stages={"features": base.SEEN, "tokenizer": base.TOKENIZER,
            "pretrain": replace(base.LANGUAGE, train=Trains(rates={"vision": 0.05}))},
    sampling=base.SAMPLING, judge="shapes")
