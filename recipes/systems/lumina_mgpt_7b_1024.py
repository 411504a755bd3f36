"""Lumina-mGPT 7B at 1024: lumina_mgpt_7b_768 at other sizes (arXiv:2408.02657)."""

from dataclasses import replace

from recipes.lumina_sizes import SIZES_1024
from recipes.systems import lumina_mgpt_7b_768
from unimm.config.model import PretrainedBackbone
from unimm.config.tokens import PretrainedText

base = lumina_mgpt_7b_768.recipe
recipe = replace(
    base,
    name="lumina_mgpt_7b_1024",
    text=PretrainedText(path="Alpha-VLLM/Lumina-mGPT-7B-1024", size=65536),
    image_tokenizer=replace(base.image_tokenizer, image=1024),
    layout=replace(base.layout, sizes=SIZES_1024),
    # An image takes up to 4,228 tokens; the release's length at this size is not stated; ours.
    stages={"sft": replace(base.stages["sft"], step_tokens=64 * 6144, seq_len=6144)},
    backbone=PretrainedBackbone(path="Alpha-VLLM/Lumina-mGPT-7B-1024"),
)
