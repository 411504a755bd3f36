"""Emoji: the demo's system on about 1,400 colour emoji and their Unicode names.

A real, if small, set of pictures, learned by heart: for a name trained on it draws the emoji, for an
emoji it says the name. Numbers are ours, for eight minutes on two CPU cores. Needs the font Noto
Color Emoji (Debian package fonts-noto-color-emoji).
"""

from dataclasses import replace

from recipes import demo
from unimm.config.data import Emoji, Use
from unimm.config.sampling import Choice, Sampling
from unimm.config.stages import Schedule
from unimm.config.tokens import SentencePieceText

PAIRS = (Use(data="emoji", task="t2i"), Use(data="emoji", task="caption"))

recipe = replace(
    demo.recipe,
    name="emoji",
    about="About 1,400 colour emoji and their Unicode names, learned by heart in eight minutes on two CPU cores.",
    text=SentencePieceText(vocab_size=1500),
    # Drawings, unlike the demo's patches, are told apart by what surrounds a patch: the encoder sees neighbours.
    image_tokenizer=replace(demo.recipe.image_tokenizer, width=128, encoder_kernel=3, foreground_weight=1.0),
    backbone=replace(demo.recipe.backbone, width=192, heads=6, kv_heads=6, mlp=512),
    data={"emoji": Emoji(size=32)},
    stages={
        "tokenizer": replace(demo.recipe.stages["tokenizer"], mix=(Use(data="emoji"),), steps=8000),
        "pretrain": replace(demo.recipe.stages["pretrain"], mix=PAIRS, steps=2200, drop_context=0.0,
                            schedule=Schedule(anneal=0.5)),
    },
    sampling=Sampling(image=Choice(temperature=0.0), guidance=1.0),
    judge="emoji",
)
