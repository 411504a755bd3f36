"""Forward, backward, step: one small interface, by DeepSpeed or by plain torch.

    for slot: losses = engine(slot, last);  engine.backward(losses.total / weight of the step)
    norm = engine.step()

`backward` adds up: over the slots of a step, and over ranks. DeepSpeed's configuration is computed from the stage and
nowhere written by hand (`unimm.train.sharded`).
"""

import importlib.util
from typing import Literal

from torch import nn

from unimm.config.stages import Stage
from unimm.train import ranks
from unimm.train.trains import EVERYTHING, Trained, TrainError
from unimm.train.update import Engine


def build_engine(module: nn.Module, stage: Stage, kind: Literal["auto", "deepspeed", "plain"] = "auto",
                 trained: Trained = EVERYTHING) -> Engine:
    """The engine of a stage; `auto` takes DeepSpeed where there is something to share. Raises TrainError."""
    ranks.start()
    if kind == "auto":
        # Of one process without ZeRO it would change nothing but the time, of a start and of every step.
        shared = stage.zero > 0 or ranks.world() > 1
        kind = "deepspeed" if shared and importlib.util.find_spec("deepspeed") else "plain"
    if kind == "deepspeed":
        from unimm.train.sharded import DeepSpeedEngine

        return DeepSpeedEngine(module, stage, trained)
    if ranks.world() > 1:
        raise TrainError(f"{ranks.world()} processes need DeepSpeed; install it, or start one process")
    return Engine(module, stage, trained)
