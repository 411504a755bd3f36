"""What accelerators can do at most (gpus.toml), and what a token of training costs: the two sides of MFU."""

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from unimm.errors import UserError


class HardwareError(UserError):
    """A GPU that the table lacks; the message lists those it has."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """flops: dense bf16 FLOP/s; memory: bytes; bandwidth: bytes/s of it; pattern: of torch.cuda.get_device_name."""

    name: str
    flops: float
    memory: int
    bandwidth: float
    pattern: str


@cache
def gpus() -> tuple[Gpu, ...]:
    """The table of gpus.toml, which names its sources."""
    table = tomllib.loads(Path(__file__).with_name("gpus.toml").read_text(encoding="utf-8"))["gpu"]
    return tuple(Gpu(**row | {"memory": row["memory"] * 2**30}) for row in table)


def gpu_named(name: str) -> Gpu:
    """The table's row for `--gpu NAME`. Raises HardwareError."""
    known = {gpu.name: gpu for gpu in gpus()}
    if name.lower() not in known:
        raise HardwareError(f"no GPU {name!r} in the table of unimm/gpus.toml; it has: {', '.join(known)}")
    return known[name.lower()]


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a device by `torch.cuda.get_device_name`, such as "NVIDIA H100 80GB HBM3".

    None for a device that the table lacks, and for a CPU, whose peak depends on the machine: no MFU is better than
    a wrong one.
    """
    return next((gpu.flops for gpu in gpus() if gpu.name != "cpu" and re.search(gpu.pattern, device_name)), None)


@dataclass(frozen=True, kw_only=True)
class Multiplied:
    """What a language model multiplies, in weights: by every token, and by every learned one; of these, the frozen.

    A table that is only looked up is not among them.
    """

    body: int
    head: int
    frozen_body: int = 0
    frozen_head: int = 0
    layers: int
    width: int
    """Of attention: heads times head width."""

    def flops(self, document: float, learned: float = 1.0, recompute: bool = False) -> float:
        """FLOPs to train on one token, forward and backward: 6 N + 12 L H Q T (PaLM, Chowdhery et al. 2022, app. B).

        document   T: length of the document a token is in, not of its packed row: others are not attended to. Like
                   PaLM's, the count does not halve for causality, so that MFU compares with published figures
        learned    the share of tokens that reach the head
        recompute  count the second forward pass of activation checkpointing too. MFU is defined without it; it is
                   what the hardware does (the "hardware FLOPs" of the same appendix)

        Gradients pass through frozen weights (4 N) but none is made for them.
        """
        forward = 2 * (self.body + learned * self.head) + 4 * self.layers * self.width * document
        frozen = self.frozen_body + learned * self.frozen_head
        return 3 * forward - 2 * frozen + (forward if recompute else 0)
