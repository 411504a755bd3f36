"""What every engine does in a step, and how it fails."""

import math

import torch
from torch import Tensor, nn

from unimm.config.stages import Stage
from unimm.losses import Losses
from unimm.train import ranks
from unimm.train.optimizer import build_optimizer
from unimm.train.pieces import Masters, Read, held_whole
from unimm.train.trains import EVERYTHING, Trained, TrainError


class NotFinite(TrainError):
    """A gradient is NaN or infinite; no weight was moved by it, and the next step may follow."""


class Autocast(nn.Module):
    """The module under bf16 autocast where the stage asks for bf16."""

    def __init__(self, module: nn.Module, stage: Stage):
        super().__init__()
        self.module = module
        self.enabled = stage.precision == "bf16"

    def forward(self, batch) -> Losses:
        with torch.autocast(ranks.device().type, torch.bfloat16, enabled=self.enabled):
            return self.module(batch)


class Engine:
    """One process, torch alone: the whole model on one device, and the reference for the curve of every other engine.

    `module` is the caller's own module, never a wrapper. `masters` is the training state: saved as its pieces, and
    what the stage would leave now.
    """

    def __init__(self, module: nn.Module, stage: Stage, trained: Trained = EVERYTHING):
        self.module, self.limit = module, stage.optimizer.clip
        self.trained = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(module, stage.optimizer, trained)
        self.forward: nn.Module = Autocast(module, stage)
        self.masters = self._take_over(stage)

    def _take_over(self, stage: Stage) -> Masters:
        """Bring weights and optimizer to where they are updated, all of them or this rank's part."""
        return Masters(self.module, self.optimizer, list(held_whole(self.module, self.optimizer).values()), stage.ema,
                       shared=True)

    def __call__(self, batch, last: bool = True) -> Losses:
        """One forward; `last` in the last one of a step."""
        return self.forward(batch)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` to that of the step; the sum over ranks is what moves the weights."""
        loss.backward()

    def step(self) -> float:
        """Clip, update, clear; the gradient norm before clipping, over all ranks.

        Raises NotFinite, on all ranks alike, with weights and optimizer unmoved and the gradients cleared.
        """
        try:
            norm = float(nn.utils.clip_grad_norm_(self.trained, self.limit))
            if not math.isfinite(norm):
                raise NotFinite(f"the gradient norm is {norm}")
            self.optimizer.step()
            self.masters.updated()
        finally:
            self.optimizer.zero_grad()
        return norm

    def set_rate(self, factor: float) -> None:
        """Set every group's learning rate to `factor` times its highest."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def restore(self, read: Read, updates: int) -> None:
        """Continue from a state saved at any world size and ZeRO stage after so many updates; the module's weights
        follow from it."""
        self.masters.restore(read, updates)

    def close(self) -> None:
        """Let go of the module, whose weights may then be empty."""
