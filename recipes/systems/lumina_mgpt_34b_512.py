"""Lumina-mGPT 34B at 512: lumina_mgpt_7b_512 at another size of model (Alpha-VLLM/Lumina-mGPT, README)."""

from dataclasses import replace

from recipes.systems import lumina_mgpt_7b_512
from unimm.config.model import PretrainedBackbone
from unimm.config.tokens import PretrainedText

recipe = replace(
    lumina_mgpt_7b_512.recipe,
    name="lumina_mgpt_34b_512",
    text=PretrainedText(path="Alpha-VLLM/Lumina-mGPT-34B-512", size=65536),
    backbone=PretrainedBackbone(path="Alpha-VLLM/Lumina-mGPT-34B-512"),
)
