"""What every rank really holds between backward and update, as JSON; started by tests under torchrun.

    python held.py FOLDER
"""

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tiny import TINY

from unimm.config.model import FreshBackbone
from unimm.config.stages import AdamW, Muon
from unimm.images.tokenizer import build_tokenizer
from unimm.sample import Batch
from unimm.system import layout_of, new_model
from unimm.text import BytesTokenizer
from unimm.train import ranks
from unimm.train.engine import build_engine
from unimm.train.shares import shares

# Some 1.3 million parameters, most of them in tensors of more than DeepSpeed's 100,000.
RECIPE = replace(TINY, backbone=FreshBackbone(width=160, layers=4, heads=4, kv_heads=2, mlp=640))
STAGE = replace(TINY.stages["sft"], step_tokens=4 * 32, seq_len=32, optimizer=AdamW(), precision="fp32")
CASES = {
    **{f"fp32 zero {zero}": {"zero": zero} for zero in range(4)},
    "bf16 zero 1": {"zero": 1, "precision": "bf16"},
    "bf16 zero 3": {"zero": 3, "precision": "bf16"},
    "accumulated, fp32 zero 1": {"zero": 1, "micro": 1},
    "accumulated, bf16 zero 1": {"zero": 1, "micro": 1, "precision": "bf16"},
    "muon and average at zero 2": {"zero": 2, "optimizer": Muon(), "ema": 0.9},
    "offload zero 3": {"zero": 3, "precision": "bf16", "offload": True},
}


def cases(world: int) -> dict[str, dict]:
    """All of them on two ranks; one rank alone at every ZeRO stage."""
    return CASES if world > 1 else {name: changes for name, changes in CASES.items() if name.startswith("fp32")}


def storages(tensors) -> dict[int, int]:
    """Address of every storage -> its bytes, each once."""
    found = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes():
            found[storage.data_ptr()] = storage.nbytes()
    return found


def live() -> dict[int, int]:
    gc.collect()
    return storages(o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter))


def tensors_in(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in inside for tensor in tensors_in(item)]


def gradients(engine, module) -> list[torch.Tensor]:
    own = [p.grad for p in module.parameters() if p.grad is not None]
    if engine.zero == 0:
        return own
    sharded = engine.engine.optimizer
    if engine.zero == 3:
        return own + tensors_in(sharded._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition)
    # In host memory where offloaded: there they wait in fp32, in the masters' own gradients.
    waiting = [flat.grad for flat in sharded.single_partition_of_fp32_groups if flat.grad is not None]
    return own + waiting + tensors_in(sharded.averaged_gradients) + tensors_in(sharded.all_grad_tensors)


def held(changes: dict, rank: int) -> dict[str, int]:
    before = live()
    stage = replace(STAGE, **changes)
    layout = layout_of(RECIPE, BytesTokenizer())
    model = new_model(RECIPE, layout, build_tokenizer(RECIPE.image_tokenizer))
    engine = build_engine(model, stage, "deepspeed")
    cut = shares(stage, ranks.world())
    ones = np.ones((cut.rows * cut.accumulated, stage.seq_len), np.int64)
    batch = Batch(ones, ones, ones > 0, np.cumsum(ones, 1) - 1, ones, ones < 0)
    slots, early = cut.slots(batch, rank), 0
    for step in (1, 2):  # moments exist from the first update on
        for number, slot in slots.items():
            early = max(early, sum(storages(gradients(engine, model)).values()))
            engine.backward(engine(slot, number == max(slots)).total)
        if step == 1:
            engine.step()
    # At zero 3 a rank's share lies beside the parameter, which is empty unless it is small and kept whole.
    weights = [tensor for p in model.parameters() for tensor in (p.data, getattr(p, "ds_tensor", p.data))]
    state = [*engine.masters.owners, *tensors_in(list(engine.optimizer.state.values()))]
    average = tensors_in(engine.masters.average)
    mine = {"weights": storages(weights), "gradients": storages(gradients(engine, model)),
            "optimizer": storages(state), "average": storages(average)}
    mine["optimizer"] = {k: v for k, v in mine["optimizer"].items() if k not in mine["weights"]}
    rest = {address for part in mine.values() for address in part}
    mine["buffers"] = {a: n for a, n in live().items() if a not in rest and a not in before}
    engine.close()
    sums = {part: sum(found.values()) for part, found in mine.items()}
    return sums | {"gradients": max(early, sums["gradients"])}


if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks.start()
    held({"zero": 2, "optimizer": Muon()}, ranks.rank())  # brings in what is imported late
    gc.collect()
    gc.freeze()  # so that looking for tensors does not go through every function of every library
    found = {name: held(changes, ranks.rank()) for name, changes in cases(ranks.world()).items()}
    Path(sys.argv[1], f"rank-{ranks.rank()}-of-{ranks.world()}.json").write_text(json.dumps(found, indent=1))
    ranks.leave()
