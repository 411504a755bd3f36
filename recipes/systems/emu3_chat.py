"""Emu3-Chat (arXiv:2409.18869): questions about images of any size; emu3_gen's tokens and template.

Files are those of baaivision/Emu3 (commit f6ea9aa).
"""

from dataclasses import replace

from recipes.own_data import CHATS, CHATTED
from recipes.systems import emu3_gen
from unimm.config.images import Emu3
from unimm.config.model import PretrainedBackbone
from unimm.config.sampling import Choice, Sampling
from unimm.config.stages import AdamW, NextToken, Schedule
from unimm.config.tokens import PretrainedText

recipe = replace(
    emu3_gen.recipe,
    name="emu3_chat",
    about="Emu3-Chat: answers about images, each read at about its own size.",
    text=PretrainedText(path="Emu3-community/Emu3-Chat-hf", size=184622),  # emu3/mllm/configuration_emu3.py
    image_tokenizer=Emu3(),  # emu3/tokenizer/image_processing_emu3visionvq.py: 512 x 512 to 1024 x 1024 pixels
    layout=replace(emu3_gen.recipe.layout, sizes=((64, 64),), learn="all"),  # what it draws is not stated; ours
    backbone=PretrainedBackbone(path="Emu3-community/Emu3-Chat-hf"),
    data={"chats": CHATS},
    stages={  # its training is not released; every number here is ours, but the length: configuration_emu3.py
        "sft": NextToken(
            mix=(CHATTED,), steps=10_000, step_tokens=64 * 9216, seq_len=9216, too_long="drop",
            optimizer=AdamW(lr=1e-5, weight_decay=0.1), schedule=Schedule(warmup=0.03, anneal=0.97, shape="cosine"),
            drop_context=0.0, precision="bf16", zero=3, recompute=True),
    },
    # Text: multimodal_understanding.py, greedy. It draws nothing there; how it would is emu3_gen's.
    sampling=Sampling(image=Choice(top_k=2048), guidance=3.0, text_length=1024),
)
