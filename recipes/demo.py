"""The demo: a small model that learns to draw what a sentence says and to answer questions about a picture.

Coloured shapes on a 32 x 32 canvas, 16 codes an image; every number here is ours, chosen so that
ten minutes on two CPU cores suffice.
"""

from unimm.config.data import Shapes, Use
from unimm.config.images import FSQ, ConvTokenizer
from unimm.config.model import FreshBackbone, SharedTable
from unimm.config.recipe import Recipe, Sampling
from unimm.config.stages import AdamW, Muon, NextToken, Reconstruct, Schedule
from unimm.config.tokens import Codebook, ImageLayout, Layout, LevelLayout, SentencePieceText

recipe = Recipe(
    name="demo",
    about="A tiny unified model on coloured shapes: the whole path in ten minutes on two CPU cores.",
    text=SentencePieceText(vocab_size=600),
    image_tokenizer=ConvTokenizer(image=32, downsample=8, quantizer=FSQ(levels=(8, 8, 8)), foreground_weight=4.0),
    codebooks=(Codebook(name="visual", size=512),),
    layout=Layout(
        write=ImageLayout(begin="<boi>", levels=(LevelLayout(space="visual"),), end="<eoi>"),
        sizes=((4, 4),), pixels_per_code=8),
    backbone=FreshBackbone(family="qwen3", width=192, layers=4, heads=6, kv_heads=6, mlp=512),
    image_in=SharedTable(rows="codebook"),
    data={
        "pairs": Shapes(part="pairs", count=40000, seed=1),
        "chats": Shapes(part="chats", count=20000, seed=2),
        "edits": Shapes(part="edits", count=10000, seed=3),
    },
    stages={
        "tokenizer": Reconstruct(mix=(Use(data="pairs"),), steps=1200, batch=64, optimizer=AdamW(lr=3e-3)),
        "pretrain": NextToken(
            mix=(Use(data="pairs", task="t2i", weight=3), Use(data="pairs", task="caption")),
            steps=800, rows=16, seq_len=128, optimizer=Muon(lr=0.02), schedule=Schedule(anneal=0.0)),
        "sft": NextToken(
            mix=(Use(data="pairs", task="t2i", weight=3), Use(data="pairs", task="caption"), Use(data="chats", weight=2),
                 Use(data="edits")),
            steps=1600, rows=16, seq_len=128, optimizer=Muon(lr=0.02), schedule=Schedule(warmup=0.0, anneal=0.6)),
    },
    sampling=Sampling(guidance=1.5, temperature=0.3),
    judge="shapes",
)
