"""A softmax of their own for the codes of one codebook, behind two linear layers (Janus)."""

from torch import Tensor, nn

from unimm.vocab import Range


class ImageHead(nn.Module):
    """forward(hidden (N, width)) -> logits (N, codes). Parameters have the names of transformers' JanusVQVAEHead."""

    def __init__(self, written: Range, width: int, inner: int):
        super().__init__()
        self.proj_out = nn.Linear(width, inner)
        self.vision_head = nn.Linear(inner, written.codes)
        self.start = written.start

    def inner(self, hidden: Tensor) -> Tensor:
        """What the last layer reads, (N, inner): the loss goes through that layer without making all logits."""
        return nn.functional.gelu(self.proj_out(hidden))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.vision_head(self.inner(hidden))
