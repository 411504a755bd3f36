"""Janus-Pro 7B (arXiv:2501.17811): janus_pro_1b at another size."""

from dataclasses import replace

from recipes.systems import janus_pro_1b
from unimm.config.model import PretrainedBackbone, PretrainedVision
from unimm.config.tokens import PretrainedText

RELEASE = "deepseek-community/Janus-Pro-7B"
base = janus_pro_1b.recipe

recipe = replace(
    base,
    name="janus_pro_7b",
    about="Janus-Pro 7B: janus_pro_1b at another size.",
    text=PretrainedText(path=RELEASE, size=102400),
    special_ids=base.special_ids | {"<｜▁pad▁｜>": 100015},  # PKU-Alignment/align-anything, issue 188
    backbone=PretrainedBackbone(path=RELEASE),
    image_in=replace(base.image_in, encoder=PretrainedVision(path=RELEASE), weights=RELEASE),
    image_out=replace(base.image_out, weights=RELEASE),
    # report, Table 2: half the steps of the last stage
    stages=base.stages | {"sft": replace(base.stages["sft"], steps=40_000)},
)
