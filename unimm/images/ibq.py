"""IBQ, index backpropagation quantization (Shi et al. 2024): the code of the largest inner product.

Names: TencentARC/SEED-Voken, src/IBQ/models/ibqgan.py and src/IBQ/modules/vqvae/quantize.py; Emu3.5's tokenizer
is the same class with the same names (a pickle, model.ckpt, of a plain state dict). Sizes: SEED-Voken's
configs/IBQ/gpu/imagenet_ibqgan_16384.yaml and pretrain_ibqgan_262144.yaml (128 channels times 1 1 2 2 4, 4 blocks,
attention at 16 of 256 pixels, which is level 4, codes of 256). For Emu3.5, 131,072 codes, 16 pixels to a code and
the multipliers were found; its width, blocks, attention and dim are taken to be SEED-Voken's, its config.yaml
could not be seen. Where a file holds moving averages (`model_ema.`, as SEED-Voken's do), they are what is
loaded: its own evaluation runs on them.
"""

import torch
import torch.nn.functional as F

from unimm.config.images import IBQ
from unimm.images.vqgan import VQGAN, Codebook, Spelling


class IndexBackpropagation(Codebook):
    """The code of the largest inner product. In training the choice itself carries a gradient: what passes
    through is the mean of all codes under the softmax, so that every code learns at every step."""

    def _far(self, rows, table):
        return -rows @ table.T

    def codes_to_vectors(self, ids):
        return F.embedding(ids, self.table())

    def _through(self, rows, vectors):
        if self.training and torch.is_grad_enabled():
            rows = F.softmax(rows @ self.table().T, dim=1) @ self.table().detach()
        return super()._through(rows, vectors)

    def _learn(self, rows, ids, vectors):
        """The release's quantization loss; its entropy loss is not here."""
        return (F.mse_loss(self._through(rows, vectors), rows) + F.mse_loss(rows, vectors.detach())
                + 0.25 * F.mse_loss(vectors, rows.detach()))


class IBQTokenizer(VQGAN):
    LEFT_OUT = ("loss.", "model_ema.")

    def __init__(self, config: IBQ):
        super().__init__(config)
        self.quantize = IndexBackpropagation(config.size, config.dim)

    def spellings(self) -> tuple[Spelling, ...]:
        return (lambda name: "model_ema." + name.replace(".", "")), str
