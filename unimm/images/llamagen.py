"""VQ-16 of LlamaGen (Sun et al. 2024), which Janus and Janus-Pro use: a codebook of unit vectors.

Names and sizes: FoundationVision/LlamaGen, tokenizer/tokenizer_image/vq_model.py (weights: a pickle of
{"model": ...}), and deepseek-ai/Janus, janus/models/vq_model.py (under `gen_vision_model.`). transformers'
JanusVQVAE has other names (models/janus/convert_janus_weights_to_hf.py), under `model.vqmodel.`.

transformers' JanusVQVAE.encode does not normalise as the release does: it takes the nearest code by plain
distance, so its ids are the release's only where the stored codes are unit vectors already. Its decode
normalises. Here the release's rule holds for both.
"""

import re

import torch.nn.functional as F

from unimm.config.images import LlamaGen
from unimm.images.vqgan import VQGAN, Codebook, Spelling


class UnitCodebook(Codebook):
    """Codes and what is coded are scaled to length 1: the nearest code is that of the smallest angle."""

    def table(self):
        return F.normalize(super().table(), dim=-1)

    def settled(self, rows):
        return F.normalize(rows, dim=-1)


class LlamaGenTokenizer(VQGAN):
    LEFT_OUT = ("loss.", "quantize.codebook_used")

    def __init__(self, config: LlamaGen):
        super().__init__(config)
        self.quantize = UnitCodebook(config.size, config.dim)

    def spellings(self) -> tuple[Spelling, ...]:
        levels = len(self.config.multipliers)

        def transformers(name: str) -> str:
            """Levels of the decoder in the order in which they run."""
            return re.sub(r"^decoder\.up\.(\d+)", lambda m: f"decoder.up.{levels - 1 - int(m[1])}", name)

        def release(name: str) -> str:
            name = re.sub(r"\.(down|up)\.(\d+)\.(block)?", lambda m: f".conv_blocks.{m[2]}." + ("res" if m[3] else ""),
                          transformers(name))
            return name.replace("mid.block_1", "mid.0").replace("mid.attn_1", "mid.1").replace("mid.block_2", "mid.2")

        return release, transformers
