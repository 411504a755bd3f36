"""ILLUME+ 3B (arXiv:2504.01934): semantic codes before pixel codes, read as features, drawn by a diffusion decoder.

Files are those of illume-unified-mllm/ILLUME_plus (commit 51de69d), ILLUME/. Published: eleven shapes of 256 to 1,024
pixels; here 512 x 512.
"""

from dataclasses import replace

from recipes import illume_plus, qwen
from recipes.own_data import CHATS, CHATTED, DRAWN_IN_CHAT, PAIRS
from unimm.config.model import PretrainedBackbone, RecipeVision, VisionFeatures
from unimm.config.recipe import Recipe
from unimm.config.sampling import Choice, Sampling
from unimm.config.stages import AdamW, NextToken
from unimm.config.tokens import Codebook, Continuous, Grid, ImageLayout, Layout, LevelLayout, PretrainedText
from unimm.config.trains import Trains

SEMANTIC = Grid(scale=9 / 16)  # 28 pixels a code, of 504 for 512: vision_tokenizer/tokenizer/dualvitok_model.py
ROWS = NextToken(mix=(CHATTED, DRAWN_IN_CHAT), steps=1, step_tokens=1024 * 4096, seq_len=4096, drop_context=0.1,
                 schedule=illume_plus.CONSTANT, precision="bf16", zero=2, recompute=True)  # one to one is ours

recipe = Recipe(
    name="illume_plus_3b",
    about="ILLUME+ 3B: 324 semantic codes, then 1,024 of pixels; continuous in, discrete out.",
    text=PretrainedText(path="Qwen/Qwen2.5-3B-Instruct", size=qwen.SIZE),
    image_tokenizer=illume_plus.TOKENIZER, features=illume_plus.FEATURES, decoder=illume_plus.DECODER,
    # scripts/prepare_llm_with_extended_vision_tokenizer.py
    codebooks=(Codebook(name="semantic", size=32768, start=151704, token="<|image_level0_{code}|>"),
               Codebook(name="visual", size=98304, start=184472, token="<|image_level1_{code}|>")),
    continuous=(Continuous(name="vision", channels=1280, placeholder="<vision>"),),  # ours; 3584, four merged, there
    layout=Layout(
        write=ImageLayout(begin="<height_{H}><width_{W}><start_of_image>", end="<end_of_image>", levels=(
            LevelLayout(space="semantic", shape=SEMANTIC, row_end="<end_of_line>", row_ends="after",
                        before="<start_of_level0>", after="<end_of_level0>"),
            LevelLayout(space="visual", row_end="<end_of_line>", row_ends="after",
                        before="<start_of_level1>", after="<end_of_level1>"))),
        # Published: features of both encoders, the semantic ones first. Here these alone; the markers are ours.
        read=ImageLayout(begin="<start_of_image>", end="<end_of_image>", levels=(
            LevelLayout(space="vision", shape=SEMANTIC),)),
        sizes=((32, 32),), bos="<|endoftext|>", eos="<|im_end|>", pad="<|endoftext|>", chat=qwen.CHAT,  # bos: ours
        # generation_eval/models/illume.py; the first says the size too there
        draw_words="Generate an image, the content of image is {text}\n", unconditional="replace",
        replacement=f"{qwen.ASKED}Generate a random image of <height_512><width_512>\n{qwen.ANSWERED}"),
    special_ids=qwen.IDS | {
        "<start_of_image>": 151665, "<end_of_image>": 151666, "<end_of_line>": 151667, "<start_of_level0>": 151668,
        "<end_of_level0>": 151669, "<start_of_level1>": 151670, "<end_of_level1>": 151671,
        "<height_512>": 151679, "<width_512>": 151695},
    backbone=PretrainedBackbone(path="Qwen/Qwen2.5-3B-Instruct"),
    image_in=VisionFeatures(encoder=RecipeVision(), image=512),
    data={"pairs": PAIRS, "chats": CHATS},
    stages=illume_plus.STAGES | {  # Table 1 and 3.4; batches are rows of 4,096
        "adapter": replace(ROWS, steps=5_000, optimizer=AdamW(lr=2e-4),
                           train=Trains(parts=("aligner", "new_rows"), rates={"aligner": 5.0})),
        "pretrain": replace(ROWS, steps=138_000, optimizer=AdamW(lr=5e-5), train=Trains(frozen=("vision",))),
        "sft": replace(ROWS, steps=40_000, step_tokens=256 * 4096, optimizer=AdamW(lr=2e-5), train=Trains(
            frozen=("vision.*layers.[0-9]", "vision.*layers.1[0-5]"), rates={"vision": 0.1})),
    },
    sampling=Sampling(image=Choice(top_k=2048), guidance=2.0),  # scripts/inference_text_to_image.sh; pixels: 6,144
)
