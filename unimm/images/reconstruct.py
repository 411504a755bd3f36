"""Training the image tokenizer: pixels in, losses out, through the same loop as the language model."""

from torch import nn

from unimm.images.base import ImageTokenizer
from unimm.images.losses import TokenizerLosses
from unimm.losses import OfPictures


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
