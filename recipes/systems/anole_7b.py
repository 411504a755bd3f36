"""Anole 7B (arXiv:2407.06135): Chameleon 7B, whose head learned to write images.

Files are those of GAIR-NLP/anole (commit af563fa).
"""

from dataclasses import replace

from recipes.own_data import DRAWN_IN_CHAT, PAIRS
from recipes.systems import chameleon_7b
from unimm.config.model import PretrainedBackbone
from unimm.config.sampling import Choice
from unimm.config.stages import AdamW, NextToken, Schedule
from unimm.config.tokens import PretrainedText
from unimm.config.trains import Trains

recipe = replace(
    chameleon_7b.recipe,
    name="anole_7b",
    about="Anole 7B: Chameleon, its output head tuned on 5,859 images.",
    text=PretrainedText(path="leloy/Anole-7b-v0.1-hf", size=65536),  # transformers' docs of Chameleon name this port
    backbone=PretrainedBackbone(path="leloy/Anole-7b-v0.1-hf"),
    data={"pairs": PAIRS},
    stages={  # facilitating_image_generation/train_image_head.py, its rate and three epochs of 5,859 images (README)
        "head": NextToken(
            mix=(DRAWN_IN_CHAT,), steps=2200,  # 3 x 5,859 images / 8 a step
            step_tokens=8 * 4096, seq_len=4096,  # 8 GPUs (README), one image each; a row of ours holds three
            train=Trains(parts=("head",)),  # the release: its rows of codes only
            optimizer=AdamW(lr=1e-3, betas=(0.9, 0.999)),  # transformers' default betas
            schedule=Schedule(warmup=0.0, anneal=1.0),  # transformers' default: linear to 0
            drop_context=0.0, precision="bf16", zero=2),  # ds_config.json; its precision is not stated
    },
    # chameleon/inference/chameleon.py, Options: as Chameleon's but for the text's temperature.
    sampling=replace(chameleon_7b.recipe.sampling, text=Choice(top_p=0.9)),
)
