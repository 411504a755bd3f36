"""Several codes a position, one after the other: a small transformer over depth (RQ-Transformer, arXiv:2203.01941).

    hidden  code 0  code 1 ...  --causal over depth-->  states 0, 1, 2 ...  --heads-->  logits of code 0, 1, 2 ...

    N positions   W the language model's width   D codes a position
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from unimm.config.model import DepthHead as Config
from unimm.model.cross_entropy import Loss
from unimm.vocab import Range


class DepthHead(nn.Module):
    """Writes the codes of `written`, whose id in the sequence is one placeholder."""

    keeps = 1  # of what a row has drawn, only the last is read

    def __init__(self, config: Config, written: Range, width: int):
        super().__init__()
        self.space, self.placeholder, self.dtype = written.name, written.start, torch.long
        self.codes, self.depth = written.codes, written.depth
        self.reads = nn.Linear(width, config.width)
        self.table = nn.Embedding((self.depth - 1) * self.codes, config.width)
        self.place = nn.Parameter(0.02 * torch.randn(self.depth, config.width))
        layer = nn.TransformerEncoderLayer(config.width, config.heads, 4 * config.width, 0.0, nn.functional.gelu,
                                           batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, config.layers, nn.LayerNorm(config.width), False)
        self.heads = nn.ModuleList(nn.Linear(config.width, self.codes) for _ in range(self.depth))
        nn.init.normal_(self.table.weight, std=0.02)

    def states(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """hidden (N, W) and the first d codes int64 (N, d) -> (N, d + 1, width), d < D."""
        offset = torch.arange(codes.shape[1], device=codes.device) * self.codes
        read = torch.cat([self.reads(hidden)[:, None], self.table(codes + offset)], 1)
        mask = nn.Transformer.generate_square_subsequent_mask(read.shape[1], hidden.device, read.dtype)
        return self.layers(read + self.place[:read.shape[1]], mask, is_causal=True)

    def loss(self, hidden: Tensor, codes: Tensor, weights: Tensor, loss: Loss, z_loss: float) -> tuple[Tensor, Tensor]:
        """The weighted sum () over positions and depth, and nats (N, D), of codes int64 (N, D)."""
        states = self.states(hidden, codes[:, :-1])
        found = [loss(states[:, d], head, codes[:, d], weights, z_loss=z_loss) for d, head in enumerate(self.heads)]
        return sum(total for total, _ in found), torch.stack([nll for _, nll in found], 1)

    def draw(self, hidden: Tensor, weights: Tensor, choose: Callable[[Tensor, int], Tensor]) -> Tensor:
        """int64 (N, D) from hidden (N, branches, W), whose logits are added up by weights (N, branches).

        `choose` picks from logits (N, codes) of one depth; its second argument is the first of their numbers.
        """
        n, branches = hidden.shape[:2]
        codes = hidden.new_zeros(n, 0, dtype=torch.long)
        for d, head in enumerate(self.heads):
            states = self.states(hidden.flatten(0, 1), codes.repeat_interleave(branches, 0))[:, -1]
            logits = (head(states).float().view(n, branches, -1) * weights[..., None]).sum(1)
            codes = torch.cat([codes, choose(logits, d * self.codes)[:, None]], 1)
        return codes
