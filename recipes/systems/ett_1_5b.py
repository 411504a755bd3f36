"""ETT 1.5B (arXiv:2505.10562): the caption's loss reaches the image tokenizer through its codes' vectors.

No code of it is public: numbers are the paper's, by section.
"""

from dataclasses import replace

from recipes import qwen
from recipes.own_data import CAPTIONED, CHATS, CHATTED, DRAWN_IN_CHAT, PAIRS
from unimm.config.images import Adversarial, ConvTokenizer, Perceptual
from unimm.config.model import CodeVectors, PretrainedBackbone, PretrainedVision
from unimm.config.quantizers import IndexBackprop
from unimm.config.recipe import Recipe
from unimm.config.sampling import Choice, Sampling
from unimm.config.stages import AdamW, NextToken, Reconstruct, Schedule
from unimm.config.tokens import Codebook, ImageLayout, Layout, LevelLayout, PretrainedText
from unimm.config.trains import Trains

ROWS = NextToken(  # 4.1; rows of ours hold one image. Caption dropout and transformers' default betas: not stated; ours
    mix=(CAPTIONED,), steps=1, step_tokens=1024 * 1280, seq_len=1280, drop_context=0.1,
    optimizer=AdamW(lr=4e-5, betas=(0.9, 0.999)), schedule=Schedule(warmup=0.03, anneal=0.97, shape="cosine"),
    precision="bf16", zero=2, recompute=True)

recipe = Recipe(
    name="ett_1_5b",
    about="ETT 1.5B: a tokenizer of 131,072 codes that goes on learning from the words said about its pictures.",
    text=PretrainedText(path="Qwen/Qwen2.5-1.5B-Instruct", size=qwen.SIZE),  # 4.1; Instruct is ours
    # 3.1, 4.1. Published: IBQ's pyramid of convolutions, LPIPS of VGG, LeCAM. Here convolutions of the pyramid's last
    # width (not stated; IBQ's), and features of a SigLIP.
    image_tokenizer=ConvTokenizer(
        image=512, downsample=16, width=512, blocks=4, losses=(Perceptual(), Adversarial(weight=0.1)),
        quantizer=IndexBackprop(size=131072, dim=256, entropy_weight=0.05)),
    features=PretrainedVision(path="google/siglip-base-patch16-512"),
    codebooks=(Codebook(name="visual", size=131072),),
    layout=Layout(  # not stated; ours
        write=ImageLayout(begin="<boi>", levels=(LevelLayout(space="visual"),), end="<eoi>"),
        sizes=((32, 32),), bos="<|endoftext|>", eos="<|im_end|>", pad="<|endoftext|>", chat=qwen.CHAT),
    special_ids=qwen.IDS,
    backbone=PretrainedBackbone(path="Qwen/Qwen2.5-1.5B-Instruct"),
    image_in=CodeVectors(depth=2),  # 3.2; two layers are ours
    data={"pairs": PAIRS, "chats": CHATS},
    stages={  # 3.3, 4.1, Table 1; steps are one pass of the data each
        "tokenizer": Reconstruct(mix=(CAPTIONED,), steps=500_000, batch=256, optimizer=AdamW(lr=1e-4, betas=(0.5, 0.9)),
                                 schedule=Schedule(warmup=0.0, anneal=0.0), precision="bf16"),  # at 256 pixels there
        "alignment": replace(ROWS, steps=11_700, train=Trains(parts=("aligner", "new_rows"))),  # rows: markers of ours
        "semantic": replace(ROWS, steps=11_700, reconstruction=0.25),  # eq. 3
        # Published: two models behind this, one to read (67.3 M) and one to draw (30.0 M). Here one of both.
        "sft": replace(ROWS, mix=(replace(CHATTED, weight=67.3), replace(DRAWN_IN_CHAT, weight=30.0)), steps=95_000,
                       optimizer=AdamW(lr=2e-5, betas=(0.9, 0.999))),
    },
    # 4.3: top-k of all codes, top-p 1; guidance is not stated, 3 is ours
    sampling=Sampling(image=Choice(), guidance=3.0, text_length=512),
)
