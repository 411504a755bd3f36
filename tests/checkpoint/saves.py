"""A module with everything that makes saving hard, its training state, and processes that die."""

import os
import threading
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from unimm.checkpoint.read import keyed
from unimm.checkpoint.write import Saver
from unimm.train import ranks

SPLIT = 150


class Odd(nn.Module):
    """Two names for one table, buffers of rare types, a parameter in another layout, a scalar, nothing at all."""

    def __init__(self, seed: int = 0):
        super().__init__()
        self.embed = nn.Embedding(5, 3, dtype=torch.bfloat16)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.turned = nn.Parameter(torch.randn(2, 6).T)
        self.scale = nn.Parameter(torch.randn(()))
        self.empty = nn.Parameter(torch.empty(0, 4))
        for name in ("uint8", "uint16", "uint32", "uint64", "int8", "bool", "float64", "float8_e4m3fn"):
            self.register_buffer(name, torch.arange(seed, seed + 5).to(getattr(torch, name)))
        random = torch.Generator().manual_seed(seed)  # its own: tests draw in several threads
        for p in self.parameters():
            p.data.copy_(torch.randn(p.shape, generator=random))


def pieces_of(module: nn.Module, rank: int = 0, world: int = 1, keys=("master", "ema")) -> dict[str, torch.Tensor]:
    """This rank's even share of every parameter: itself in fp32, and a made-up average."""
    pieces = {}
    for name, p in module.named_parameters():
        flat = p.detach().float().flatten()
        share = slice(len(flat) * rank // world, len(flat) * (rank + 1) // world)
        if share.stop > share.start:
            both = {"master": flat[share].clone(), "ema": flat[share] * 2 + 1}
            pieces |= keyed(name, share.start, {key: both[key] for key in keys})
    return pieces


def save(folder, step=3, seed=None, keep=9, split=SPLIT, **options):
    """Save an Odd that is drawn by its step, and wait for it."""
    saver = Saver(folder, keep=keep, split=split, **options)
    module = Odd(step if seed is None else seed)
    saver.save(step, module.state_dict(), pieces_of(module), {"stage": "toy", "zero": 1}, {"name": "toy"})
    return saver.wait()


def same(a: nn.Module, b: nn.Module) -> bool:
    """Bit for bit, whatever the type."""
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(
        torch.equal(t.contiguous().reshape(-1).view(torch.uint8), two[name].contiguous().reshape(-1).view(torch.uint8))
        for name, t in one.items())


def forked(action) -> int:
    """Run `action` in a child process; its exit code, negative if a signal killed it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def together(world: int, act) -> list:
    """`act(peers)` as every one of `world` ranks, each a thread; what each gave or raised. `peers` go to a `Saver`."""
    barrier, box, found = threading.Barrier(world), [None] * world, [None] * world

    def rank(r: int) -> None:
        def gather(value):
            box[r] = value
            barrier.wait()
            values = list(box)
            barrier.wait()
            return values

        try:
            found[r] = act({"rank": r, "world": world, "gather": gather})
        except Exception as error:
            found[r] = error

    threads = [threading.Thread(target=rank, args=(r,)) for r in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def rank_of_two(folder: Path, rank: int) -> None:
    """Saves three times over a group of its own while the ranks add numbers over the first one."""
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    saver = Saver(folder / "run", 2, 0, rank, 2, partial(ranks.gather, group=dist.new_group(backend="gloo")))
    for step in range(1, 4):
        whole = torch.arange(10.0) * step
        saver.save(step, {"w": whole}, keyed("w", 5 * rank, {"master": whole[5 * rank:][:5]}), {}, {})
        for _ in range(20):
            mine = torch.ones(100)
            dist.all_reduce(mine)
            assert mine.eq(2).all()
    assert saver.wait().name == "step-00000003"
    dist.barrier()
    os._exit(0)  # past the interpreter's teardown, in which gloo's threads now and then abort
