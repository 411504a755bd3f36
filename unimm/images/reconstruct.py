"""Training the image tokenizer: pixels in, losses out, through the same loop as the language model."""

from unimm.images.base import ImageTokenizer
from unimm.losses import OfPictures


class Reconstruction(OfPictures):
    """The image tokenizer's own losses, and those that its configuration asks for beside them."""

    def __init__(self, tokenizer: ImageTokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def losses(self, images, texts):
        return self.tokenizer(images).losses
