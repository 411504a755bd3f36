"""What a rank holds between backward and update: weights, gradients, optimizer, at every ZeRO stage.

    real processes, 1 and 2 ranks --> bytes of each part --> beside `unimm plan`, and beside torch's DDP

Started by torchrun, this file is one of those ranks; else it starts them.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tools.bench import step
from tools.bench.rows import Row, equal, faster, main, within
from unimm.config.model import FreshBackbone
from unimm.plan.memory import Counts, memory
from unimm.train import ranks
from unimm.train.engine import Engine, build_engine
from unimm.train.shares import shares
from unimm.train.table import PERSIST

ROOT = Path(__file__).parents[2]
SIZE = step.Size(name="2.6 M", model=FreshBackbone(width=192, layers=4, heads=4, kv_heads=4, mlp=640), vocab=1024,
                 rows=2, seq_len=32, document=10, steps=2)
PARTS = ("weights", "gradients", "optimizer")
CASES = [f"zero {zero} {kind}" for kind in ("fp32", "bf16") for zero in range(4) if zero or kind == "fp32"]
STEPS = 3


def stored(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Address of each storage -> its bytes, for parts share them."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}


def tensors_in(value) -> list[Tensor]:
    """Tensors anywhere inside dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in inside for tensor in tensors_in(item)]


def gradients(engine: Engine, zero: int) -> list[Tensor]:
    """Where DeepSpeed 0.19 keeps this rank's until the update: in the parameters, or in shards of its own."""
    own = [p.grad for p in engine.module.parameters() if p.grad is not None]
    if zero == 0:
        return own
    sharded = engine.engine.optimizer
    if zero == 3:
        return own + tensors_in(sharded._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition)
    return own + tensors_in(sharded.averaged_gradients) + tensors_in(sharded.all_grad_tensors)


def held(weights: Iterable[Tensor], grads: Iterable[Tensor], state: Iterable[Tensor]) -> dict[str, int]:
    """Bytes by part; masters that are the weights themselves count once."""
    kept = stored(weights)
    return {"weights": sum(kept.values()), "gradients": sum(stored(grads).values()),
            "optimizer": sum(size for at, size in stored(state).items() if at not in kept)}


def share(number: int):
    """This rank's rows of batch `number`."""
    batch, each = step.packed(SIZE, number), SIZE.rows // ranks.world()
    return batch[ranks.rank() * each:(ranks.rank() + 1) * each], step.packed(SIZE, number)


def ours(zero: int, precision: str) -> dict[str, int | list[float]]:
    """Bytes by part of this rank before the last update, and the gradient norms of the updates before."""
    module, norms = step.build(SIZE), []
    engine = build_engine(module, step.stage(SIZE, STEPS, 1, zero=zero, precision=precision), "deepspeed")
    for number in range(STEPS):
        mine, whole = share(number)
        engine.backward(engine(mine, True).total / module.weigh(whole).learned)
        if number < STEPS - 1:
            norms.append(engine.step())
    # At zero 3 a rank's share lies beside the parameter, which is empty unless it is small and kept whole.
    weights = [tensor for p in module.parameters() for tensor in (p.data, getattr(p, "ds_tensor", p.data))]
    state = [*engine.masters.owners, *tensors_in(list(engine.optimizer.state.values()))]
    found = held(weights, gradients(engine, zero), state) | {"norms": norms}
    engine.close()
    return found


def ddp() -> dict[str, int | list[float]]:
    """The same of torch's DistributedDataParallel; the copies of gradients in its buckets, out of sight, left out."""
    module, norms = step.build(SIZE), []
    engine = DistributedDataParallel(module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=step.OPTIMIZER.lr, betas=step.OPTIMIZER.betas,
                                  weight_decay=0.0)
    for number in range(STEPS):
        mine, whole = share(number)
        (engine(mine).total * ranks.world() / module.weigh(whole).learned).backward()
        if number < STEPS - 1:
            norms.append(float(torch.nn.utils.clip_grad_norm_(module.parameters(), step.OPTIMIZER.clip)))
            optimizer.step()
            optimizer.zero_grad()
    parameters = list(module.parameters())
    return held(parameters, [p.grad for p in parameters], tensors_in(list(optimizer.state.values()))) | {"norms": norms}


def planned(zero: int, precision: str, world: int) -> dict[str, int]:
    """The same parts by `unimm plan`."""
    sizes = [p.numel() for p in step.build(SIZE).parameters()]
    counts = Counts(parameters=sum(sizes), trained=sum(sizes), small=sum(n for n in sizes if n < PERSIST), row=0,
                    row_recomputed=0)
    stage = step.stage(SIZE, STEPS, 1, zero=zero, precision=precision)
    found, _ = memory(counts, stage, shares(stage, world), gpu=False)
    return {part: found[part] for part in PARTS}


def worker(folder: Path, cases: list[str]) -> None:
    torch.set_num_threads(1)
    ranks.start(alone=True)
    found = {case: ours(int(case[5]), case[7:]) for case in cases} | {"ddp": ddp()}
    (folder / f"{ranks.rank()}.json").write_text(json.dumps(found))
    ranks.leave()


def measured(world: int, cases: list[str]) -> list[dict]:
    """What each of `world` ranks held."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}",
                   "-m", "tools.bench.zero", folder, *cases]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True,
                              text=True, timeout=300)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(world)]


def rows(toy: bool = False) -> Iterable[Row]:
    """Of each stage and precision: the part that is farthest from its plan, and all three beside DDP's."""
    cases = ["zero 1 fp32", "zero 3 bf16"] if toy else CASES
    for world in (2,) if toy else (1, 2):
        everyone = measured(world, cases)
        for case in cases:
            if case.endswith("fp32"):
                norms, theirs = (everyone[0][name]["norms"] for name in (case, "ddp"))
                equal(f"gradient norms of {case} and DDP", norms, theirs, 1e-4)
            plan = planned(int(case[5]), case[7:], world)
            most = {part: max(rank[case][part] for rank in everyone) for part in PARTS}
            worst = max(PARTS, key=lambda part: abs(most[part] / plan[part] - 1))
            yield within(f"bytes per rank, {case}, {world} of them; farthest: {worst}", "unimm plan",
                         most[worst] / 1e6, plan[worst] / 1e6, "MB", 10)
            if world > 1:
                peer = max(sum(rank["ddp"][part] for part in PARTS) for rank in everyone)
                yield faster(f"bytes per rank, {case}, {world} of them", "DDP + AdamW, fp32", sum(most.values()) / 1e6,
                             peer / 1e6, "MB", 1.0)


if __name__ == "__main__":
    if "TORCHELASTIC_RUN_ID" in os.environ:
        worker(Path(sys.argv[1]), sys.argv[2:])
    else:
        main(rows)
