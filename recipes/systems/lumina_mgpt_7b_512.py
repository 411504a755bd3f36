"""Lumina-mGPT 7B at 512: lumina_mgpt_7b_768 at other sizes (arXiv:2408.02657)."""

from dataclasses import replace

from recipes.lumina_sizes import SIZES_512
from recipes.systems import lumina_mgpt_7b_768
from unimm.config.model import PretrainedBackbone
from unimm.config.tokens import PretrainedText

base = lumina_mgpt_7b_768.recipe
recipe = replace(
    base,
    name="lumina_mgpt_7b_512",
    text=PretrainedText(path="Alpha-VLLM/Lumina-mGPT-7B-512", size=65536),
    image_tokenizer=replace(base.image_tokenizer, image=512),
    layout=replace(base.layout, sizes=SIZES_512),
    backbone=PretrainedBackbone(path="Alpha-VLLM/Lumina-mGPT-7B-512"),
)
