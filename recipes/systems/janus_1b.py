"""Janus 1.3B (arXiv:2410.13848): janus_pro_1b's predecessor, whose speakers are plain words.

What its stages change is meant to be the paper's Table 1, which was not at hand: check it there.
"""

from dataclasses import replace

from recipes.systems import janus_pro_1b
from unimm.config.model import PretrainedBackbone, PretrainedVision
from unimm.config.stages import AdamW
from unimm.config.tokens import PretrainedText

RELEASE = "deepseek-ai/Janus-1.3B"  # its own format; transformers' converter makes a folder of it
base = janus_pro_1b.recipe
first, second, third = base.stages["adaptors"], base.stages["pretrain"], base.stages["sft"]
talk, read, draw = third.mix

recipe = replace(
    base,
    name="janus_1b",
    about="Janus 1.3B: vision features in, an own table and head out.",
    text=PretrainedText(path=RELEASE, size=102400),
    special_ids=base.special_ids | {"<｜▁pad▁｜>": 100015},  # PKU-Alignment/align-anything, issue 188
    layout=replace(base.layout, chat=replace(  # inference.py, generation_inference.py
        base.layout.chat, user=("User: ", "\n\n"), assistant=("Assistant:", base.layout.eos))),
    backbone=PretrainedBackbone(path=RELEASE),
    image_in=replace(base.image_in, encoder=PretrainedVision(path=RELEASE), weights=RELEASE),
    image_out=replace(base.image_out, weights=RELEASE),
    stages={
        "adaptors": replace(first, steps=10_000),
        "pretrain": replace(second, steps=180_000, schedule=replace(second.schedule, warmup=0.0278)),
        "sft": replace(third, steps=24_000, step_tokens=256 * 4096, optimizer=AdamW(lr=2e-5, weight_decay=0.1), mix=(
            replace(talk, weight=7), replace(read, weight=3), replace(draw, weight=10))),  # 7:3:10
    },
)
