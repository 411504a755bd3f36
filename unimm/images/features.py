"""The feature network: a vision encoder that sees meaning, taught by captions."""

from torch import nn

from unimm.images.captions import Captions
from unimm.losses import OfPictures


class Contrast(OfPictures):
    """Pooled features (their mean) of a vision encoder, as of `unimm.published.vision`, against captions."""

    def __init__(self, vision: nn.Module):
        super().__init__()
        self.vision = vision
        self.captions = Captions(vision.config.hidden_size)

    def losses(self, images, texts):
        return {"contrast": self.captions(self.vision(images).last_hidden_state.mean(1), texts)}
