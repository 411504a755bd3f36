"""FQGAN at toy scale: two codes a position, each of a codebook of its own, the second predicted given the first.

Differs from the paper: captions in place of classes, and questions besides; the features that teach the codes are
trained here, by contrast. Tried: 2 x 128 codes, of which the first said all (0.006 nats for the second given it);
without places it drew 58 % of single objects right.
"""

from dataclasses import replace

from recipes.systems import fqgan
from recipes.toys import base
from unimm.config.images import Distill
from unimm.config.model import CodeVectors, DepthHead
from unimm.config.quantizers import VQ, Product
from unimm.config.tokens import Codebook

recipe = replace(
    fqgan.recipe, name="fqgan", about="FQGAN at toy scale: 2 x 32 codes a position, a depth transformer.",
    text=base.TEXT, features=base.FEATURES, image_tokenizer=replace(
        base.IMAGES, quantizer=Product(of=VQ(size=32, dim=8), parts=2, disentangle=0.1),
        losses=(Distill(weight=0.2),)),
    codebooks=(Codebook(name="visual", size=32, depth=2, shared=False),),
    layout=replace(fqgan.recipe.layout, sizes=base.SIZES, pixels_per_code=base.PIXELS_PER_CODE, chat=base.CHAT),
    backbone=base.BACKBONE, image_in=CodeVectors(depth=2, places=24), image_out=DepthHead(width=96, layers=2, heads=4),
    data=base.DATA, stages={"features": base.SEEN, "tokenizer": base.TOKENIZER, "pretrain": base.LANGUAGE},
    sampling=base.SAMPLING, judge="shapes")
