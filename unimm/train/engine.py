"""Forward, backward, step: one small interface, by plain torch or by DeepSpeed.

    for slot: losses = engine(slot, last);  engine.backward(losses.total / weight of the step)
    norm = engine.step()

`backward` adds up: over the slots of a step, and over ranks. DeepSpeed's configuration is computed from the stage and
nowhere written by hand; it serves at every ZeRO stage, over any number of ranks, one included.

At ZeRO stage 0 the weights stay fp32, bf16 is autocast, and clipping is ours (it needs the norm anyway and refuses
non-finite gradients before anything moves); from stage 1 on, DeepSpeed holds fp32 masters of bf16 weights, clips, and
skips a step that is not finite. Plain bf16 weights at stage 0 are never used: DeepSpeed 0.19 takes an extra Adam step
there at initialisation.
"""

import importlib.util
import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from unimm.config.stages import Stage
from unimm.losses import Losses
from unimm.train import ranks
from unimm.train.optimizer import Exchange, MuonAdamW, build_optimizer
from unimm.train.pieces import Held, Masters, Read, held_whole
from unimm.train.shares import shares
from unimm.train.trains import EVERYTHING, Trained, TrainError


class NotFinite(TrainError):
    """A gradient is NaN or infinite; no weight was moved by it, and the next step may follow."""


class Autocast(nn.Module):
    """The module under bf16 autocast where the stage asks for bf16."""

    def __init__(self, module: nn.Module, stage: Stage):
        super().__init__()
        self.module, self.enabled = module, stage.precision == "bf16"

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
        self.masters = self._take_over(stage, held_whole(module, self.optimizer))

    def _take_over(self, stage: Stage, whole: dict[nn.Parameter, Held]) -> Masters:
        """Bring weights and optimizer to where they are updated, all of them or this rank's part."""
        return Masters(self.module, self.optimizer, list(whole.values()), stage.ema)

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

    def restore(self, read: Read, updates: int) -> None:
        """Continue from a state saved at any world size and ZeRO stage after so many updates; the module's weights
        follow from it."""
        self.masters.restore(read, updates)

    def close(self) -> None:
        """Let go of the module, whose weights may then be empty."""


def deepspeed_config(stage: Stage, world: int, parameters: int) -> dict:
    """DeepSpeed's configuration of this stage on `world` ranks, for a model of so many parameters."""
    cut = shares(stage, world)
    half = stage.zero > 0 and stage.precision == "bf16"
    # Slots of a step are added up in fp32. At stage 1 DeepSpeed would then turn to another optimizer of its own, one
    # that takes a step as it starts; stage 2 gives the same curve.
    summed = half and cut.accumulated > 1
    config = {
        "train_batch_size": cut.rows * cut.accumulated * world,
        "train_micro_batch_size_per_gpu": cut.rows,
        "gradient_accumulation_steps": cut.accumulated,
        # At stage 0 `clip` clips: DeepSpeed's own neither returns the norm nor looks for NaN.
        "gradient_clipping": stage.optimizer.clip if stage.zero else 0.0,
        "steps_per_print": None,
        "zero_optimization": {"stage": max(stage.zero, 2 * summed), "reduce_bucket_size": min(parameters, 500_000_000)},
        "zero_allow_untested_optimizer": True,  # the optimizer with Muon, which is tested here
    }
    if stage.offload:
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        config["zero_force_ds_cpu_optimizer"] = False  # DeepSpeed's own would be compiled at the start
    if half:
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        config["data_types"] = {"grad_accum_dtype": "fp32" if summed else "bf16"}
    return config


class DeepSpeedEngine(Engine):
    """See `Engine`."""

    def _take_over(self, stage: Stage, whole: dict[nn.Parameter, Held]) -> Masters:
        self.launched = "LOCAL_RANK" in os.environ
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it, at ZeRO-3 in every step, launcher or not
        deepspeed = _import_deepspeed()
        ranks.start(alone=True)
        self.zero = stage.zero
        config = deepspeed_config(stage, ranks.world(), sum(p.numel() for p in self.module.parameters()))
        self.engine, *_ = deepspeed.initialize(model=self.forward, optimizer=self.optimizer, config=config,
                                               dist_init_required=False)
        # In one process it would copy every gradient there and back for nobody.
        self.engine.enable_backward_allreduce &= ranks.world() > 1 or stage.zero > 0
        flats = "fp32_partitioned_groups_flat" if stage.zero == 3 else "single_partition_of_fp32_groups"
        self.flats = getattr(self.engine.optimizer, flats, [])  # none at zero 0
        held = [h for h in self._cut(whole) if h.size > 0] if stage.zero else list(whole.values())
        if isinstance(self.optimizer, MuonAdamW):
            # One for every flat piece of matrices; every rank has as many pieces, be they empty.
            own = {flat: [h for h in held if h.owner is flat] for flat in self.flats}
            self.optimizer.exchanges = {flat: Exchange(some) for flat, some in own.items() if any(
                ranks.gather(any(h.moments == ("momentum",) for h in some)))}
        return Masters(self.module, self.optimizer, held, stage.ema, shared=stage.zero == 0,
                       gathered=deepspeed.zero.GatheredParameters if stage.zero == 3 else nullcontext)

    def _cut(self, whole: dict[nn.Parameter, Held]) -> Iterator[Held]:
        """What of every trained parameter this rank's optimizer updates, and in which flat piece; some are empty."""
        for p, h in whole.items():
            if self.zero == 3:  # an equal part for every rank, the last ones padded
                flat, offset, length = self.engine.optimizer.grad_position[self.engine.optimizer.get_param_id(p)]
                start = min(length * ranks.rank(), h.size)
                yield h._replace(owner=self.flats[flat], offset=offset, start=start, size=min(length, h.size - start))
            elif cut := p._hp_mapping:
                there, own = cut.hp_fragment_address, cut.lp_fragment_address
                yield h._replace(owner=self.flats[cut.param_group_index], offset=there.start, start=own.start,
                                 size=own.numel)

    def __call__(self, batch, last: bool = True) -> Losses:
        self.engine.set_gradient_accumulation_boundary(last)
        return self.engine(batch)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss * ranks.world(), scale_wrt_gas=False)  # DeepSpeed takes the mean over ranks

    def step(self) -> float:
        if self.zero == 0:  # gradients are averaged in backward, and everything else is as in one process
            return super().step()
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm())
        if not math.isfinite(norm) or self.engine.optimizer.overflow:
            raise NotFinite(f"the gradient norm is {norm}")
        self.masters.updated()
        return norm

    @torch.no_grad()
    def restore(self, read: Read, updates: int) -> None:
        super().restore(read, updates)
        sharded = self.engine.optimizer
        if self.zero == 3:  # as its step ends
            sharded._partition_all_parameters()
            for group in range(len(sharded.fp16_groups)):
                sharded._reassign_or_swap_out_partitioned_parameters(group)
            if sharded.persistent_parameters:
                sharded.persistent_parameters[0].all_gather(sharded.persistent_parameters)
        elif self.zero:
            sharded.update_lp_params()

    def close(self) -> None:
        self.engine.destroy()
        if not self.launched:
            os.environ.pop("LOCAL_RANK", None)  # accelerate, in the same process, would look for the launcher


def _import_deepspeed():
    """DeepSpeed, quiet, and kept from compiling anything."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed calls collectives that torch is renaming, once a bucket, each with a warning.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    import deepspeed.ops
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    deepspeed.utils.logger.setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        # Said before it asks: it would probe a compiler, and its shared-memory collectives compile for a minute at the
        # first start, where a killed build hangs every later run.
        deepspeed.ops.__compatible_ops__ = dict.fromkeys([*ALL_OPS, "deepspeed_not_implemented"], False)
    return deepspeed


def build_engine(module: nn.Module, stage: Stage, kind: Literal["auto", "deepspeed", "plain"] = "auto",
                 trained: Trained = EVERYTHING) -> Engine:
    """The engine of a stage; `auto` takes DeepSpeed where there is something to share. Raises TrainError."""
    ranks.start()
    # In one process without ZeRO it would change nothing but the time, of a start and of every step.
    shared = (stage.zero > 0 or ranks.world() > 1) and importlib.util.find_spec("deepspeed")
    if kind == "deepspeed" or (kind == "auto" and shared):
        return DeepSpeedEngine(module, stage, trained)
    if ranks.world() > 1:
        raise TrainError(f"{ranks.world()} processes need DeepSpeed; install it, or start one process")
    return Engine(module, stage, trained)
