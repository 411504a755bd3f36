"""What every engine does in a step, and how it fails."""

import contextlib
import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from unimm.checkpoint.pieces import Piece
from unimm.config.stages import Stage
from unimm.errors import UserError
from unimm.losses import Losses
from unimm.train import ranks
from unimm.train.optimizer import build_optimizer
from unimm.train.pieces import Masters, Read


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


class Engine:
    """What the loop needs; the methods that raise here are those in which engines differ.

    `module` is the caller's own module, never a wrapper. `whole` says whether it holds whole weights.
    """

    masters: Masters
    whole = True

    def __init__(self, module: nn.Module, stage: Stage, rates: Mapping[str, float] | None,
                 undecayed: Collection[str]):
        self.module, self.limit = module, stage.optimizer.clip
        self.trained = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(module, stage.optimizer, rates, undecayed)

    def __call__(self, batch, last: bool = True) -> Losses:
        """One forward; `last` in the last one of a step."""
        raise NotImplementedError

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` to that of the step; the sum over ranks is what moves the weights."""
        raise NotImplementedError

    def step(self) -> float:
        """Clip, update, clear; the gradient norm before clipping, over all ranks.

        Raises NotFinite, on all ranks alike, with weights and optimizer unmoved and the gradients cleared.
        """
        raise NotImplementedError

    def set_rate(self, factor: float) -> None:
        """Set every group's learning rate to `factor` times its highest."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def pieces(self) -> list[Piece]:
        """This rank's part of the training state."""
        return self.masters.pieces()

    def scalars(self) -> dict[str, int]:
        """What else it takes to continue, the same on every rank, as small JSON."""
        return {"updates": self.masters.updates}

    def restore(self, read: Read, scalars: Mapping[str, int]) -> None:
        """Continue from a state saved at any world size and ZeRO stage; the module's weights follow from it."""
        self.masters.restore(read, scalars["updates"])

    def weights(self) -> dict[str, Tensor]:
        """What the stage would leave now, whole, in rank 0's host memory; {} elsewhere. Every rank calls it."""
        return self.masters.weights(self.whole)

    def shown(self) -> contextlib.AbstractContextManager:
        """Inside, rank 0's module holds those weights. Every rank enters it."""
        return self.masters.shown(self.whole)

    def close(self) -> None:
        """Let go of the module. Its weights may then be empty: load what the stage saved."""
