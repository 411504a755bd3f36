"""Continuous latents, one a position: a small network carries noise to the next one (MAR, arXiv:2406.11838).

    x_t = (1 - t) noise + t latent      the network predicts latent - noise, given hidden, t and x_t
    (rectified flow: Liu et al. 2022, arXiv:2209.03003)

    N positions   W the language model's width   C channels
"""

import torch
from torch import Tensor, nn

from unimm.config.model import FlowHead as Config
from unimm.vocab import Range


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

    def __init__(self, config: Config, written: Range, width: int, keeps: int):
        super().__init__()
        self.space, self.placeholder, self.dtype = written.name, written.start, torch.float32
        self.depth, self.steps, self.repeat, self.keeps = written.depth, config.steps, config.repeat, keeps
        self.reads, self.time = nn.Linear(width, config.width), nn.Linear(64, config.width)
        self.enter = nn.Linear(self.depth, config.width)
        self.blocks = nn.ModuleList(_Block(config.width) for _ in range(config.layers))
        self.leave = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, self.depth))
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
