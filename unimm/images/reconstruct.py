"""Training on pictures: pixels in, losses out, through the same loop as the language model."""

import torch
from torch import nn

from unimm.images.base import ImageTokenizer
from unimm.images.losses import TokenizerLosses
from unimm.losses import Losses, Weight
from unimm.sample import Pictures


class OfPictures(nn.Module):
    """forward(Pictures) -> Losses: the named losses of `losses`, each a mean over images, each reported apart."""

    def losses(self, images: torch.Tensor, texts: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Of float32 images (B, 3, H, W) in [-1, 1] with their captions: scalars, already weighted."""
        raise NotImplementedError

    def forward(self, batch: Pictures) -> Losses:
        device, n = next(self.parameters()).device, len(batch)
        images = torch.as_tensor(batch.pixels, device=device).permute(0, 3, 1, 2).float() / 127.5 - 1
        found = self.losses(images, batch.texts)
        return Losses(sum(found.values()) * n, {name: (loss.detach() * n, n) for name, loss in found.items()})

    def weigh(self, batch: Pictures) -> Weight:
        return Weight(float(len(batch)), len(batch))


class Reconstruction(OfPictures):
    """The image tokenizer's own losses, and those that its configuration asks for beside them.

    Raises TokenizerError where they ask for `features`, a vision encoder, and there is none.
    """

    def __init__(self, tokenizer: ImageTokenizer, features: nn.Module | None = None):
        super().__init__()
        self.tokenizer = tokenizer
        self.asked = TokenizerLosses(tokenizer, features)

    def losses(self, images, texts):
        found = self.tokenizer(images)
        return found.losses | self.asked(self.tokenizer, images, texts, found)
