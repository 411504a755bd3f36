"""Training the image tokenizer: pixels in, losses out, through the same loop as the language model."""

import numpy as np
import torch
from torch import nn

from unimm.images.base import ImageTokenizer
from unimm.losses import Losses, Weight


class Reconstruction(nn.Module):
    """forward(uint8 (B, H, W, 3), numpy) -> Losses: the tokenizer's named losses of each image, each reported apart."""

    def __init__(self, tokenizer: ImageTokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, pixels: np.ndarray) -> Losses:
        images = torch.as_tensor(pixels, device=next(self.parameters()).device).permute(0, 3, 1, 2).float() / 127.5 - 1
        found = self.tokenizer(images)
        n = len(pixels)
        parts = {name: (loss.detach() * n, n) for name, loss in found.losses.items()}
        return Losses(found.loss * n, parts)

    def weigh(self, pixels: np.ndarray) -> Weight:
        return Weight(float(len(pixels)), len(pixels))
