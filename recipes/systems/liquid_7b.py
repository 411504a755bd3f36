"""Liquid 7B (arXiv:2412.04332): Gemma 7B with 8,192 codes as further rows of its own table.

Files are those of FoundationVision/Liquid (commit 4609c47).
"""

from dataclasses import replace

from recipes.own_data import CAPTIONED, DRAWN, PAIRS, READ, TEXT
from unimm.config.images import Chameleon
from unimm.config.model import PretrainedBackbone, SharedTable
from unimm.config.recipe import Recipe
from unimm.config.sampling import Choice, Sampling
from unimm.config.stages import AdamW, NextToken, Schedule
from unimm.config.tokens import Chat, Codebook, ImageLayout, Layout, LevelLayout, PretrainedText

recipe = Recipe(
    name="liquid_7b",
    about="Liquid 7B: a stock language model whose vocabulary holds image codes; no vision encoder.",
    text=PretrainedText(path="Junfeng5/Liquid_V1_7B", size=256000),
    image_tokenizer=Chameleon(),  # evaluation/inference_i2t.py pads a picture to a square of (122, 116, 104) instead
    codebooks=(Codebook(name="visual", size=8192, start=256000),),  # len(tokenizer) + code: liquid/train/train.py
    layout=Layout(
        write=ImageLayout(begin="<boi>", levels=(LevelLayout(space="visual"),), end="<eoi>"),
        sizes=((32, 32),), pixels_per_code=16, bos="<bos>", eos="<eos>", pad="<pad>",
        # evaluation/VQA_Eval/conversation.py, GEMMA; evaluation/inference_i2t.py puts a newline behind the image
        chat=Chat(system=None, user=("<start_of_turn>user\n", "<end_of_turn>\n"),
                  assistant=("<start_of_turn>model\n", "<end_of_turn>\n<eos>"), beside_image="\n"),
        unconditional="replace", replacement="<unconditional>",  # evaluation/inference_t2i.py
        learn="body",  # liquid/train/train.py: labels begin behind <boi>
        # liquid/train/train.py: one of ten phrases, this one in evaluation/inference_t2i.py; and the caption's
        draw_words="{text} Generate an image based on this description.",
        caption_words="The caption of this image is:"),
    # TRAIN.md: Gemma's <unused0>, <unused1> and <unused2> under new names. The numbers are those of google/gemma-7b's
    # tokenizer, which was not at hand; one that is is checked against them.
    special_ids={"<pad>": 0, "<eos>": 1, "<bos>": 2, "<boi>": 7, "<eoi>": 8, "<unconditional>": 9,
                 "<start_of_turn>": 106, "<end_of_turn>": 107},
    backbone=PretrainedBackbone(path="Junfeng5/Liquid_V1_7B", rows="all"),  # to train anew: google/gemma-7b (TRAIN.md)
    image_in=SharedTable(rows="covariance", spread=3.2e-5),  # liquid/expand_vocabulary.py: mean_resizing=True
    data={"pairs": PAIRS, "text": TEXT},
    stages={  # scripts/gemma7b_mixpretrain.sh and TRAIN.md
        "pretrain": NextToken(
            mix=(READ, replace(DRAWN, weight=0.1), replace(CAPTIONED, weight=0.9)),
            steps=50_000,  # not stated; ours: one epoch of data that are not public
            # The script draws a tenth of its pairs (T2I_ratio); pairs to texts one to one is ours.
            step_tokens=1024 * 2048, seq_len=2048, drop_context=0.1,  # batch 1024: TRAIN.md; 0.9: train.py
            optimizer=AdamW(lr=2e-5, betas=(0.9, 0.999)),  # transformers' default betas
            schedule=Schedule(warmup=0.03, anneal=0.97, shape="cosine"),
            precision="bf16", zero=3, recompute=True),
    },
    # evaluation/inference_t2i.py
    sampling=Sampling(image=Choice(temperature=0.99, top_k=4096, top_p=0.96), guidance=7.0, text_length=1024),
)
