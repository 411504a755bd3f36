"""What writes codes that are no rows of the language model's table.

    ImageHead   a softmax of their own for the codes of one codebook, behind two linear layers (Janus)
    DepthHead   several codes a position: a small transformer over depth (RQ-Transformer, arXiv:2203.01941)
                hidden, code 0, code 1 ... --causal over depth--> states 0, 1, 2 ... --heads--> logits of code 0, 1, 2
    FlowHead    latents: a small network carries noise to the next one (MAR, arXiv:2406.11838)
                x_t = (1 - t) noise + t latent; it predicts latent - noise, given hidden, t and x_t
                (rectified flow: Liu et al. 2022, arXiv:2209.03003)

    N positions   W the language model's width   D codes a position   C channels

Each writes the ids from `start` to `stop`, and gives the loss of what a position holds.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from unimm.config import model as config
from unimm.model.cross_entropy import Loss
from unimm.vocab import Range


class ImageHead(nn.Module):
    """Logits are vision_head(inner(hidden (N, W))), (N, codes). Named as in transformers' JanusVQVAEHead."""

    def __init__(self, written: Range, width: int, inner: int):
        super().__init__()
        self.proj_out = nn.Linear(width, inner)
        self.vision_head = nn.Linear(inner, written.codes)
        self.start, self.stop = written.start, written.stop

    def inner(self, hidden: Tensor) -> Tensor:
        """What the last layer reads, (N, inner): the loss goes through that layer without making all logits."""
        return nn.functional.gelu(self.proj_out(hidden))

    def loss(self, hidden: Tensor, ids: Tensor, weights: Tensor, loss: Loss, z_loss: float) -> tuple[Tensor, Tensor]:
        """The weighted sum () and nats (N, 1), of ids int64 (N,)."""
        total, nll = loss(self.inner(hidden), self.vision_head, ids - self.start, weights, z_loss=z_loss)
        return total, nll[:, None]


class DepthHead(nn.Module):
    """Writes the codes of `written`, whose id in the sequence is one placeholder."""

    keeps = 1  # of what a row has drawn, only the last is read

    def __init__(self, wanted: config.DepthHead, written: Range, width: int):
        super().__init__()
        self.space, self.start, self.stop, self.dtype = written.name, written.start, written.stop, torch.long
        self.codes, self.depth = written.codes, written.depth
        self.reads = nn.Linear(width, wanted.width)
        self.table = nn.Embedding((self.depth - 1) * self.codes, wanted.width)
        self.place = nn.Parameter(0.02 * torch.randn(self.depth, wanted.width))
        layer = nn.TransformerEncoderLayer(wanted.width, wanted.heads, 4 * wanted.width, 0.0, nn.functional.gelu,
                                           batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, wanted.layers, nn.LayerNorm(wanted.width), False)
        self.heads = nn.ModuleList(nn.Linear(wanted.width, self.codes) for _ in range(self.depth))
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


class _Block(nn.Module):
    """Residual layer whose norm is shifted, scaled and gated by the condition; starts as the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.condition = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))
        self.body = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        nn.init.zeros_(self.condition[1].weight)
        nn.init.zeros_(self.condition[1].bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.condition(condition).chunk(3, -1)
        return x + gate * self.body(self.norm(x) * (1 + scale) + shift)


class FlowHead(nn.Module):
    """Writes the latents of `written`, whose id in the sequence is one placeholder. Everything is float32."""

    def __init__(self, wanted: config.FlowHead, written: Range, width: int, keeps: int):
        super().__init__()
        self.space, self.start, self.stop, self.dtype = written.name, written.start, written.stop, torch.float32
        self.depth, self.steps, self.repeat, self.keeps = written.depth, wanted.steps, wanted.repeat, keeps
        self.reads, self.time = nn.Linear(width, wanted.width), nn.Linear(64, wanted.width)
        self.enter = nn.Linear(self.depth, wanted.width)
        self.blocks = nn.ModuleList(_Block(wanted.width) for _ in range(wanted.layers))
        self.leave = nn.Sequential(nn.LayerNorm(wanted.width), nn.Linear(wanted.width, self.depth))
        nn.init.zeros_(self.leave[1].weight)
        nn.init.zeros_(self.leave[1].bias)

    def velocity(self, x: Tensor, t: Tensor, hidden: Tensor) -> Tensor:
        """(N, C) at x (N, C) and t (N,), given hidden (N, W)."""
        dtype = self.enter.weight.dtype
        angles = t[:, None] * 2 ** torch.linspace(0, 10, 32, device=t.device)
        times = self.time(torch.cat([angles.sin(), angles.cos()], -1).to(dtype))
        condition, x = self.reads(hidden.to(dtype)) + times, self.enter(x.to(dtype))
        for block in self.blocks:
            x = block(x, condition)
        return self.leave(x).float()

    def loss(self, hidden: Tensor, latents: Tensor, weights: Tensor, *_) -> tuple[Tensor, Tensor]:
        """The weighted sum () over positions, and mean squared errors (N, 1), at `repeat` random times of each."""
        with torch.autocast(hidden.device.type, enabled=False):
            hidden, latents = (x.float().repeat(self.repeat, 1) for x in (hidden, latents))
            noise, t = torch.randn_like(latents), torch.rand(len(latents), device=latents.device)
            x = torch.lerp(noise, latents, t[:, None])
            error = (self.velocity(x, t, hidden) - (latents - noise)).square().mean(-1)
            error = error.view(self.repeat, -1).mean(0)
            return (error * weights).sum(), error.detach()[:, None]

    def draw(self, hidden: Tensor, weights: Tensor, noise: Tensor) -> Tensor:
        """(N, C) from noise (N, C) and hidden (N, branches, W), whose velocities are added up by weights (N, branches).
        """
        n, branches = hidden.shape[:2]
        x, hidden = noise, hidden.flatten(0, 1).float()
        for step in range(self.steps):
            t = x.new_full((n * branches,), step / self.steps)
            v = self.velocity(x.repeat_interleave(branches, 0), t, hidden).view(n, branches, -1)
            x = x + (v * weights[..., None]).sum(1) / self.steps
        return x
