"""Chameleon's VQGAN (Chameleon Team 2024), which Anole, Liquid and Lumina-mGPT use too.

Names and shapes: facebookresearch/chameleon, chameleon/inference/vqgan.py, and its weights tokenizer/vqgan.ckpt
(a pickle of {"state_dict": ...}). transformers keeps them under `model.vqmodel.` and leaves the decoder out
(huggingface/transformers, models/chameleon/convert_chameleon_weights_to_hf.py: "we dont do image generation yet").
The sizes are those of transformers' ChameleonVQVAEConfig, made from the release's vqgan.yaml, which itself
could not be seen: 128 channels times 1 1 2 2 4, 2 blocks, no attention but the middle's, 8,192 codes of 256.
"""

from unimm.config.images import Chameleon
from unimm.images.vqgan import VQGAN


class ChameleonTokenizer(VQGAN):
    """The plain VQGAN; without a decoder where the configuration says so."""

    def __init__(self, config: Chameleon):
        super().__init__(config)
        if not config.decoder:
            self.decoder, self.draws = None, False
