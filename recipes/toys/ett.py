"""ETT at toy scale: a tokenizer that goes on learning from answers about its pictures, through its codes' vectors.

Differs from the paper: questions stand for captions; the stages behind the joint one read and draw in one model.
The joint stage took reconstruction from 36.7 to 37.4 dB, and answers after it from 53.2 % with a frozen tokenizer to
54.1 %, which is within chance.
"""

from dataclasses import replace

from recipes.systems import ett_1_5b
from recipes.toys import base
from unimm.config.data import Use
from unimm.config.model import CodeVectors
from unimm.config.quantizers import IndexBackprop
from unimm.config.stages import AdamW, Schedule
from unimm.config.tokens import Codebook
from unimm.config.trains import Trains

READ = replace(base.LANGUAGE, mix=(Use(data="chats"),), drop_context=0.0)

recipe = replace(
    ett_1_5b.recipe, name="ett", about="ETT at toy scale: 512 codes, tuned end to end.",
    text=base.TEXT, features=None, image_tokenizer=replace(
        base.IMAGES, quantizer=IndexBackprop(size=512, dim=32, entropy_weight=0.5), losses=()),
    codebooks=(Codebook(name="visual", size=512),),
    layout=replace(ett_1_5b.recipe.layout, sizes=base.SIZES, pixels_per_code=base.PIXELS_PER_CODE,
                   chat=base.CHAT),
    special_ids={}, backbone=base.BACKBONE, image_in=CodeVectors(depth=2, places=24), data=base.DATA,
    stages={
        "tokenizer": replace(base.TOKENIZER, steps=1100, optimizer=AdamW(lr=6e-3)),
        "alignment": replace(READ, steps=300, schedule=Schedule(warmup=0.02, anneal=0.0)),
        "semantic": replace(READ, steps=300, reconstruction=0.25, schedule=Schedule(warmup=0.02, anneal=0.0),
                            train=Trains(rates={"tokenizer": 0.1})),
        "sft": replace(base.LANGUAGE, steps=1500),
    },
    sampling=base.SAMPLING, judge="shapes")
