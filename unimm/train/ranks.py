"""The processes of a run: which one this is, how they agree, how they leave.

A launcher (torchrun, deepspeed) sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; for tasks of
SLURM's srun they are made here from what SLURM sets. Without either this is the only process and no port is opened.
"""

import os
import re
import sys
from collections.abc import MutableMapping
from datetime import timedelta

import torch
import torch.distributed as dist


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", 1))


def device() -> torch.device:
    """This rank's GPU where there is one, else the CPU."""
    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    """What its maker calls this rank's GPU, as `unimm.hardware.peak_flops` knows it; "cpu" without one."""
    return torch.cuda.get_device_name(device()) if torch.cuda.is_available() else "cpu"


def adopt_slurm(environment: MutableMapping[str, str]) -> None:
    """Give a task of srun the variables that torchrun would give it.

    Only inside a step: a batch script and a shell of salloc have SLURM_PROCID or SLURM_NTASKS too, but are one process.
    torchrun started by srun has set RANK already, and goes before. What is set by hand stays.
    """
    task = environment.get("SLURM_STEP_ID", "").isdigit() and int(environment.get("SLURM_NTASKS", 1)) > 1
    if "RANK" in environment or not task:
        return
    nodes = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
    # Every task finds the same port, another job on the node another one; below the ports that systems hand out.
    port = 15000 + (7 * int(environment["SLURM_JOB_ID"]) + int(environment["SLURM_STEP_ID"])) % 15000
    environment.update(RANK=environment["SLURM_PROCID"], WORLD_SIZE=environment["SLURM_NTASKS"])
    # With --gpus-per-task=1 each task sees one GPU, and that is number 0.
    environment.setdefault("LOCAL_RANK", "0" if torch.cuda.device_count() == 1 else environment["SLURM_LOCALID"])
    environment.setdefault("MASTER_ADDR", first_host(nodes))
    environment.setdefault("MASTER_PORT", str(port))


def first_host(nodes: str) -> str:
    """The first of SLURM's list of hosts: "gpu[07-12,20],big1" -> "gpu07"; task 0 runs there."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes).group()
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)


def start(alone: bool = False) -> None:
    """Join the other ranks; with `alone`, make a group of one too, as DeepSpeed wants one. Idempotent."""
    if dist.is_initialized():
        return
    adopt_slurm(os.environ)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        dist.init_process_group(backend)
    elif alone:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def own_group(hours: float = 2) -> dist.ProcessGroup | None:
    """A group of all ranks for a thread to talk over beside the training; None in a lone process.

    `hours` is how long one rank may work there while the others wait. Every rank calls this together.
    """
    return dist.new_group(backend="gloo", timeout=timedelta(hours=hours)) if world() > 1 else None


def barrier(group: dist.ProcessGroup | None = None) -> None:
    if world() > 1:
        dist.barrier(group)


def total(values: list[float]) -> list[float]:
    """The element-wise sum over ranks, in float64."""
    if world() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device())
    dist.all_reduce(tensor)
    return tensor.tolist()


def gather(value, group: dist.ProcessGroup | None = None) -> list:
    """Every rank's `value`, in order of rank; over a group of all ranks of its own, or the one that training uses."""
    if world() == 1:
        return [value]
    values = [None] * world()
    dist.all_gather_object(values, value, group=group)
    return values


def from_first(value):
    """Rank 0's `value`, on every rank."""
    return gather(value)[0]


def say(text: str) -> None:
    """Print it, on rank 0."""
    if rank() == 0:
        print(text, flush=True)


def leave(code: int = 0) -> None:
    """End a launched worker; in a process without a launcher, only close the group.

    About one in seven gloo workers aborts in the interpreter's teardown after its work is done, and the
    launcher then reports a failure; so workers skip that teardown.
    """
    if dist.is_initialized() and code == 0:  # after an error the others may be gone: don't wait for them
        barrier()
        dist.destroy_process_group()
    if "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("WORLD_SIZE", 1)) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
