"""What every engine does in a step, and how it fails."""

import math

import torch
from torch import Tensor, nn

from unimm.config.stages import Stage
from unimm.errors import UserError
from unimm.losses import Losses
from unimm.train import ranks


class TrainError(UserError):
    """A stage that can't be trained as asked, or that went wrong; the message names the remedy."""


class NotFinite(TrainError):
    """A gradient is NaN or infinite; no weight was moved by it, and the next step may follow."""


class Autocast(nn.Module):
    """The module under bf16 autocast where the stage asks for bf16."""

    def __init__(self, module: nn.Module, stage: Stage):
        super().__init__()
        self.module = module
        self.enabled = stage.precision == "bf16"

    def forward(self, batch) -> Losses:
        if not self.enabled:
            return self.module(batch)
        with torch.autocast(ranks.device().type, torch.bfloat16):
            return self.module(batch)


def clip(gradients: list[Tensor], limit: float) -> float:
    """Scale gradients in place to a total norm of at most `limit`; returns the norm before. Raises NotFinite."""
    norm = float(torch.nn.utils.get_total_norm(gradients))
    if not math.isfinite(norm):
        raise NotFinite(f"the gradient norm is {norm}")
    if norm > limit:
        torch._foreach_mul_(gradients, limit / norm)
    return norm


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
