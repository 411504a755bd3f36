"""MoVQGAN by SBER (Zheng et al. 2022; Kandinsky's): the decoder's norms read the codes' vectors.

Names: ai-forever/MoVQGAN, movqgan/models/vqgan.py and movqgan/modules/vqvae/movq_modules.py. Sizes:
configs/movqgan_270M.yaml (width 256, 2 blocks); the 67M has width=128, the 102M width=128, blocks=4
(movqgan/__init__.py). attn_resolutions [32] of 256 pixels is level 3. The weights are pickles of plain
state dicts; their moving averages (`ema_...`) are passed over, as the release's own inference does.
"""

from torch import Tensor

from unimm.config.images import MoVQ
from unimm.images.vqgan import VQGAN


class MoVQTokenizer(VQGAN):
    LEFT_OUT = ("loss.", "ema_")

    def __init__(self, config: MoVQ):
        super().__init__(config, context=config.dim)

    def drawn(self, vectors: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(vectors), vectors)
