"""VILA-U at toy scale: residual codes a position, aligned with captions, read as the sum of their vectors.

Differs from the paper: three codes a position, not four; convolutions for a vision transformer; tokens on their grid.
"""

from dataclasses import replace

from recipes.systems import vila_u_7b
from recipes.toys import base
from unimm.config.images import Contrastive
from unimm.config.model import CodeVectors, DepthHead
from unimm.config.quantizers import VQ, Residual
from unimm.config.tokens import Codebook, Grid, LevelLayout

recipe = replace(
    vila_u_7b.recipe, name="vila_u", about="VILA-U at toy scale: three residual codes a position.",
    text=base.TEXT, features=None, image_tokenizer=replace(
        base.IMAGES, quantizer=Residual(of=VQ(size=128, dim=16), depth=3), losses=(Contrastive(weight=0.05),)),
    codebooks=(Codebook(name="visual", size=128, depth=3, shared=False),),
    layout=replace(
        vila_u_7b.recipe.layout, sizes=base.SIZES, pixels_per_code=base.PIXELS_PER_CODE,
        replacement="<unconditional>",
        write=replace(vila_u_7b.recipe.layout.write, levels=(LevelLayout(space="visual", shape=Grid()),)),
        chat=base.CHAT), special_ids={},
    backbone=base.BACKBONE, image_in=CodeVectors(depth=2, places=24), image_out=DepthHead(width=96, layers=2, heads=4),
    data=base.DATA, stages={"tokenizer": base.TOKENIZER, "pretrain": base.LANGUAGE},
    sampling=base.SAMPLING, judge="shapes")
