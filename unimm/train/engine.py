"""Forward, backward, step: one small interface, by DeepSpeed or by plain torch.

    losses = engine(batch);  engine.backward(losses.total);  norm = engine.step()

DeepSpeed's configuration is computed from the stage and nowhere written by hand. At ZeRO stage 0 the
weights stay fp32, bf16 is autocast, and clipping is ours (it needs the norm anyway and refuses
non-finite gradients before anything moves); from stage 1 on, DeepSpeed holds fp32 masters of bf16
weights, clips, and skips a non-finite step. Plain bf16 weights at stage 0 are never used: DeepSpeed
0.19 takes an extra Adam step there at initialisation.
"""

import contextlib
import importlib.util
import logging
import math
import os
import warnings
from typing import Literal, Protocol, assert_never

import torch
from torch import Tensor, nn

from unimm.config import stages
from unimm.config.stages import NextToken, Reconstruct, Stage
from unimm.errors import UserError
from unimm.losses import Losses
from unimm.train import ranks
from unimm.train.optimizer import build_optimizer


class TrainError(UserError):
    """A stage that can't be trained as asked, or that went wrong; the message names the remedy."""


class NotFinite(TrainError):
    """A loss or a gradient is NaN or infinite; no weight was moved by it."""


class Engine(Protocol):
    """What the loop needs. `module` is the caller's own module, never a wrapper."""

    module: nn.Module

    def __call__(self, batch) -> Losses: ...

    def backward(self, loss: Tensor) -> None: ...

    def step(self) -> float:
        """Clip, update, clear; the gradient norm before clipping, over all ranks.

        Raises NotFinite, on all ranks alike, with weights and optimizer unmoved and the gradients cleared.
        """

    def set_rate(self, factor: float) -> None:
        """Set every group's learning rate to `factor` times its highest."""

    def state(self) -> dict | None:
        """This rank's optimizer state, of tensors and plain values; None where rank 0's serves all."""

    def restore(self, state: dict) -> None: ...

    def whole(self) -> contextlib.AbstractContextManager:
        """Inside, every rank's `module` holds whole weights. ZeRO-3 shards them otherwise, to the end and beyond:
        then the checkpoint, not the module, is what a stage leaves."""


class _Autocast(nn.Module):
    """The module under bf16 autocast where the stage asks for bf16."""

    def __init__(self, module: nn.Module, stage: Stage):
        super().__init__()
        self.module = module
        self.enabled = stage.precision == "bf16"

    def forward(self, batch) -> Losses:
        with torch.autocast(ranks.device().type, torch.bfloat16, enabled=self.enabled):
            return self.module(batch)


def clip(gradients: list[Tensor], limit: float) -> float:
    """Scale gradients in place to a total norm of at most `limit`; returns the norm before. Raises NotFinite."""
    norm = float(torch.nn.utils.get_total_norm(gradients))
    if not math.isfinite(norm):
        raise NotFinite(f"the gradient norm is {norm}")
    if norm > limit:
        torch._foreach_mul_(gradients, limit / norm)
    return norm


def _set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


class PlainEngine:
    """One process, torch alone: where DeepSpeed can't be installed, and as the reference for its curve."""

    def __init__(self, module: nn.Module, stage: Stage):
        if ranks.world() > 1:
            raise TrainError(f"{ranks.world()} processes need DeepSpeed; install it, or start one process")
        self.module = module
        self.trained = [p for p in module.parameters() if p.requires_grad]
        self.limit = stage.optimizer.clip
        self.forward = _Autocast(module, stage)
        self.optimizer = build_optimizer(module, stage.optimizer)

    def __call__(self, batch) -> Losses:
        return self.forward(batch)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> float:
        try:
            norm = clip([p.grad for p in self.trained if p.grad is not None], self.limit)
            self.optimizer.step()
        finally:
            self.optimizer.zero_grad()
        return norm

    def set_rate(self, factor: float) -> None:
        _set_rate(self.optimizer, factor)

    def state(self) -> dict | None:
        return {"optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict) -> None:
        self.optimizer.load_state_dict(state["optimizer"])

    def whole(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()


def per_step(stage: Stage) -> tuple[int, str]:
    """What one optimizer step takes over all ranks: how many, and the field that says so."""
    match stage:
        case Reconstruct():
            return stage.batch, "batch"
        case NextToken():
            return stage.rows, "rows"
        case _:
            return 1, "batch"


def deepspeed_config(stage: Stage, world: int, parameters: int) -> dict:
    """DeepSpeed's configuration of this stage on `world` ranks, for a model of so many parameters."""
    rows, _ = per_step(stage)
    config = {
        "train_batch_size": rows,
        "train_micro_batch_size_per_gpu": rows // world,
        "gradient_accumulation_steps": 1,
        # At stage 0 `clip` above clips: DeepSpeed's own neither returns the norm nor looks for NaN.
        "gradient_clipping": stage.optimizer.clip if stage.zero else 0.0,
        "steps_per_print": None,
        "zero_optimization": {"stage": stage.zero, "reduce_bucket_size": min(parameters, 500_000_000)},
    }
    if stage.zero and stage.precision == "bf16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
    return config


class DeepSpeedEngine:
    """DeepSpeed over any number of ranks, one included."""

    def __init__(self, module: nn.Module, stage: Stage):
        deepspeed = _import_deepspeed()
        ranks.start(alone=True)
        self.module = module
        self.zero = stage.zero
        self.trained = [p for p in module.parameters() if p.requires_grad]
        self.limit = stage.optimizer.clip
        self.optimizer = build_optimizer(module, stage.optimizer)
        parameters = sum(p.numel() for p in module.parameters())
        self.engine, *_ = deepspeed.initialize(
            model=_Autocast(module, stage), optimizer=self.optimizer, dist_init_required=False,
            config=deepspeed_config(stage, ranks.world(), parameters))
        if ranks.world() == 1 and stage.zero == 0:
            self.engine.enable_backward_allreduce = False  # it would copy every gradient there and back for nobody
        self.gathered = deepspeed.zero.GatheredParameters

    def __call__(self, batch) -> Losses:
        return self.engine(batch)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

    def step(self) -> float:
        if self.zero == 0:
            try:
                norm = clip([p.grad for p in self.trained if p.grad is not None], self.limit)
                self.engine.step()
            finally:
                self.engine.zero_grad()
            return norm
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm())
        if not math.isfinite(norm) or self.engine.optimizer.overflow:
            raise NotFinite(f"the gradient norm is {norm}")
        return norm

    def set_rate(self, factor: float) -> None:
        _set_rate(self.optimizer, factor)

    def _masters(self) -> list[Tensor]:
        """ZeRO's fp32 shards on this rank, which its optimizer steps and the module's weights are made from."""
        sharded = self.engine.optimizer
        return sharded.fp32_partitioned_groups_flat if self.zero == 3 else sharded.single_partition_of_fp32_groups

    def state(self) -> dict | None:
        if self.zero == 0 and ranks.rank() > 0:
            return None
        if self.zero == 0:
            return {"optimizer": self.optimizer.state_dict()}
        return {"masters": [(m.detach().clone(), dict(self.optimizer.state[m])) for m in self._masters()]}

    def restore(self, state: dict) -> None:
        if self.zero == 0:
            self.optimizer.load_state_dict(state["optimizer"])
            return
        for master, (saved, moments) in zip(self._masters(), state["masters"], strict=True):
            master.data.copy_(saved)
            self.optimizer.state[master] = {name: value.to(master.device) for name, value in moments.items()}

    def whole(self) -> contextlib.AbstractContextManager:
        return self.gathered(list(self.module.parameters())) if self.zero == 3 else contextlib.nullcontext()


def _import_deepspeed():
    """DeepSpeed, quiet, and kept from compiling anything."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it even in a process without a launcher
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed calls collectives that torch is renaming, once a bucket, each with a warning.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    import deepspeed
    import deepspeed.ops
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    deepspeed.utils.logger.setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        # Said before it asks: it would probe a compiler, and its shared-memory collectives compile for a minute at the
        # first start, where a killed build hangs every later run.
        deepspeed.ops.__compatible_ops__ = dict.fromkeys([*ALL_OPS, "deepspeed_not_implemented"], False)
    return deepspeed


def check_engine(stage: Stage, world: int) -> None:
    """Refuse what no engine does, before anything is built. Raises TrainError."""
    rows, field = per_step(stage)
    if rows % world:
        raise TrainError(f"{type(stage).__name__}.{field} is {rows}, which {world} processes can't share evenly; "
                         f"make it a multiple of {world}")
    if stage.zero and isinstance(stage.optimizer, stages.Muon):
        raise TrainError(f"{type(stage).__name__}.zero is {stage.zero}, but Muon needs whole matrices, which ZeRO "
                         "cuts up; set zero to 0 or optimizer to adamw")


def build_engine(module: nn.Module, stage: Stage, kind: Literal["auto", "deepspeed", "plain"] = "auto") -> Engine:
    """The engine of a stage. `auto` takes DeepSpeed where it is installed. Raises TrainError."""
    ranks.start()
    check_engine(stage, ranks.world())
    if kind == "auto":
        kind = "deepspeed" if importlib.util.find_spec("deepspeed") else "plain"
    match kind:
        case "deepspeed":
            return DeepSpeedEngine(module, stage)
        case "plain":
            return PlainEngine(module, stage)
        case _:
            assert_never(kind)
