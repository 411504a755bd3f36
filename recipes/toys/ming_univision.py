"""Ming-UniVision at toy scale: continuous latents in and out, a flow head, edits over several rounds.

Differs from the paper: 16 latents of 16 channels; the encoder, the expander and the pixel decoder learn in one stage.
Drawn latents differ from encoded ones, so that edits of what it drew go wrong. Tried: 1,400 steps, not 2,000, drew 40 %
of single objects right.
"""

from dataclasses import replace

from recipes.systems import ming_univision_16b
from recipes.toys import base
from unimm.config.data import Shapes, Use
from unimm.config.images import Distill, ViTTokenizer
from unimm.config.model import FlowHead, LatentVectors
from unimm.config.quantizers import Unquantized
from unimm.config.tokens import Continuous, LevelLayout, Line

recipe = replace(
    ming_univision_16b.recipe, name="ming_univision", about="Ming-UniVision at toy scale: 16 latents an image.",
    text=base.TEXT, features=base.FEATURES, image_tokenizer=ViTTokenizer(
        image=32, downsample=8, width=96, layers=1, decoder_layers=2, expander=1, locality=6.0,
        quantizer=Unquantized(dim=16, noise=0.1), foreground_weight=4.0, losses=(Distill(weight=0.2),),
        codebook="latent"),
    continuous=(Continuous(name="latent", channels=16, placeholder="<imagePatch>"),),
    layout=replace(
        ming_univision_16b.recipe.layout, sizes=base.SIZES, pixels_per_code=base.PIXELS_PER_CODE, chat=base.CHAT,
        draw_words="{text}",
        write=replace(ming_univision_16b.recipe.layout.write,
                      levels=(LevelLayout(space="latent", shape=Line(length=16)),))),
    special_ids={}, backbone=base.BACKBONE, image_in=LatentVectors(depth=2, places=24),
    image_out=FlowHead(width=192, layers=3, steps=12, repeat=4),
    data=base.DATA | {"rounds": Shapes(part="rounds", count=20000, seed=5)},
    stages={
        "features": base.SEEN, "tokenizer": replace(base.TOKENIZER, steps=1600),
        "pretrain": replace(base.LANGUAGE, mix=(*base.MIX, Use(data="rounds", weight=0.15))),
    },
    sampling=base.SAMPLING, judge="shapes")
