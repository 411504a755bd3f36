"""Forward, backward, step: one small interface, by DeepSpeed or by plain torch.

    for slot: losses = engine(slot, last);  engine.backward(losses.total / weight of the step)
    norm = engine.step()

`backward` adds up: over the slots of a step, and over ranks. DeepSpeed's configuration is computed from the stage and
nowhere written by hand (`unimm.train.sharded`).
"""

import contextlib
import importlib.util
from collections.abc import Collection, Mapping
from typing import Literal, Protocol, assert_never

from torch import Tensor, nn

from unimm.checkpoint.pieces import Piece
from unimm.config.stages import Stage
from unimm.losses import Losses
from unimm.train import ranks
from unimm.train.optimizer import build_optimizer
from unimm.train.pieces import Masters, Read, held_whole
from unimm.train.update import Autocast, TrainError, clip, set_rate


class Engine(Protocol):
    """What the loop needs. `module` is the caller's own module, never a wrapper."""

    module: nn.Module

    def __call__(self, batch, last: bool) -> Losses:
        """One forward; `last` in the last one of a step."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` to that of the step; the sum over ranks is what moves the weights."""

    def step(self) -> float:
        """Clip, update, clear; the gradient norm before clipping, over all ranks.

        Raises NotFinite, on all ranks alike, with weights and optimizer unmoved and the gradients cleared.
        """

    def set_rate(self, factor: float) -> None:
        """Set every group's learning rate to `factor` times its highest."""

    def pieces(self) -> list[Piece]:
        """This rank's part of the training state."""

    def scalars(self) -> dict[str, int]:
        """What else it takes to continue, the same on every rank, as small JSON."""

    def restore(self, read: Read, scalars: Mapping[str, int]) -> None:
        """Continue from a state saved at any world size and ZeRO stage; the module's weights follow from it."""

    def weights(self) -> dict[str, Tensor]:
        """What the stage would leave now, whole, in rank 0's host memory; {} elsewhere. Every rank calls it."""

    def shown(self) -> contextlib.AbstractContextManager:
        """Inside, rank 0's module holds those weights. Every rank enters it."""

    def close(self) -> None:
        """Let go of the module. Its weights may then be empty: load what the stage saved."""


class PlainEngine:
    """One process, torch alone: the whole model on one device, and the reference for DeepSpeed's curve."""

    def __init__(self, module: nn.Module, stage: Stage, rates: Mapping[str, float] | None = None,
                 undecayed: Collection[str] = ()):
        if ranks.world() > 1:
            raise TrainError(f"{ranks.world()} processes need DeepSpeed; install it, or start one process")
        self.module = module
        self.trained = [p for p in module.parameters() if p.requires_grad]
        self.limit = stage.optimizer.clip
        self.forward = Autocast(module, stage)
        self.optimizer = build_optimizer(module, stage.optimizer, rates, undecayed)
        held = list(held_whole(module, self.optimizer).values())
        self.masters = Masters(module, self.optimizer, held, stage.ema, shared=True)

    def __call__(self, batch, last: bool = True) -> Losses:
        return self.forward(batch)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> float:
        try:
            norm = clip([p.grad for p in self.trained if p.grad is not None], self.limit)
            self.optimizer.step()
            self.masters.updated()
        finally:
            self.optimizer.zero_grad()
        return norm

    def set_rate(self, factor: float) -> None:
        set_rate(self.optimizer, factor)

    def pieces(self) -> list[Piece]:
        return self.masters.pieces()

    def scalars(self) -> dict[str, int]:
        return {"updates": self.masters.updates}

    def restore(self, read: Read, scalars: Mapping[str, int]) -> None:
        self.masters.restore(read, scalars["updates"])

    def weights(self) -> dict[str, Tensor]:
        return self.masters.weights(whole=True)

    def shown(self) -> contextlib.AbstractContextManager:
        return self.masters.shown(whole=True)

    def close(self) -> None:
        pass


def build_engine(module: nn.Module, stage: Stage, kind: Literal["auto", "deepspeed", "plain"] = "auto",
                 rates: Mapping[str, float] | None = None, undecayed: Collection[str] = ()) -> Engine:
    """The engine of a stage; `auto` takes DeepSpeed where there is something to share. Raises TrainError.

    `rates` multiplies the learning rate of the parameters it names; `undecayed` names those without weight decay.
    """
    ranks.start()
    if kind == "auto":
        # Of one process without ZeRO it would change nothing but the time, of a start and of every step.
        shared = stage.zero > 0 or ranks.world() > 1
        kind = "deepspeed" if shared and importlib.util.find_spec("deepspeed") else "plain"
    match kind:
        case "deepspeed":
            from unimm.train.sharded import DeepSpeedEngine

            return DeepSpeedEngine(module, stage, rates, undecayed)
        case "plain":
            return PlainEngine(module, stage, rates, undecayed)
        case _:
            assert_never(kind)
