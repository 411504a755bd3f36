"""What accelerators can do at most, and what a token of training costs: the two sides of MFU.

Peaks are dense (no 2:4 sparsity; datasheets print twice that), bf16 with fp32 accumulation. Memory is what torch
reports (`get_device_properties(0).total_memory`), rounded down: a little less than the number on the box.
"""

import re
from dataclasses import dataclass

from unimm.errors import UserError

GiB = 2**30


class HardwareError(UserError):
    """A GPU that the table lacks; the message lists those it has."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """flops: bf16 FLOP/s; memory: bytes; bandwidth: bytes/s of its memory; pattern: of torch.cuda.get_device_name."""

    name: str
    flops: float
    memory: int
    bandwidth: float
    pattern: str


# The first pattern that matches a device's name wins: boards of less come before the family they belong to.
GPUS = (
    # NVIDIA H200 datasheet, NVL, as H100 NVL: 1,671 TFLOP/s with sparsity, 141 GB, 4.8 TB/s
    Gpu(name="h200-nvl", flops=835.5e12, memory=139 * GiB, bandwidth=4.8e12, pattern=r"\bH200 NVL\b"),
    # NVIDIA H200 datasheet: 1,979 TFLOP/s with sparsity, 141 GB, 4.8 TB/s; torchtitan 989, Composer 989.5
    Gpu(name="h200", flops=989.4e12, memory=139 * GiB, bandwidth=4.8e12, pattern=r"\bH200\b"),
    # NVIDIA H100 datasheet, PCIe: 1,513 TFLOP/s with sparsity, 80 GB, 2 TB/s; torchtitan 756, Composer 756.5
    Gpu(name="h100-pcie", flops=756.5e12, memory=79 * GiB, bandwidth=2.0e12, pattern=r"\bH[18]00 (PCIe|80GB HBM2e)\b"),
    # NVIDIA H100 NVL product brief PB-11773-001: 94 GB, 3,938 GB/s; datasheet: 1,671 TFLOP/s with sparsity; torchtitan
    # 835
    Gpu(name="h100-nvl", flops=835.5e12, memory=93 * GiB, bandwidth=3.938e12, pattern=r"\bH100 NVL\b"),
    # NVIDIA H100 datasheet, SXM: 1,979 TFLOP/s with sparsity, 80 GB, 3.35 TB/s; torchtitan 989; H800 alike but for
    # NVLink
    Gpu(name="h100", flops=989.4e12, memory=79 * GiB, bandwidth=3.35e12, pattern=r"\bH[18]00\b"),
    # NVIDIA A100 datasheet: 312 TFLOP/s, 40 GB, 1,555 GB/s; torchtitan and Composer 312
    Gpu(name="a100-40", flops=312e12, memory=39 * GiB, bandwidth=1.555e12, pattern=r"\bA100.*40GB\b"),
    # NVIDIA A100 datasheet, SXM: 312 TFLOP/s, 80 GB, 2,039 GB/s (PCIe: 1,935); A800 alike but for NVLink
    Gpu(name="a100-80", flops=312e12, memory=79 * GiB, bandwidth=2.039e12, pattern=r"\bA[18]00\b.*80GB\b"),
    # NVIDIA Blackwell datasheet: 4.5 PFLOP/s with sparsity, up to 8 TB/s; torchtitan 2,250. Its driver says 178.35 GiB
    # and 7,680 bits at 3,996 MHz, 7.67 TB/s (pytorch/ao, pull request 4002)
    Gpu(name="b200", flops=2250e12, memory=178 * GiB, bandwidth=7.67e12, pattern=r"\bB200\b"),
    # NVIDIA L40S datasheet: 362.05 TFLOP/s, 48 GB, 864 GB/s; torchtitan 362
    Gpu(name="l40s", flops=362e12, memory=44 * GiB, bandwidth=0.864e12, pattern=r"\bL40S\b"),
    # NVIDIA L4 datasheet: 242 TFLOP/s with sparsity, 24 GB, 300 GB/s
    Gpu(name="l4", flops=121e12, memory=22 * GiB, bandwidth=0.3e12, pattern=r"\bL4\b"),
    # NVIDIA Ada architecture whitepaper, appendix A: 165.2 TFLOP/s, 24 GB, 1,008 GB/s
    Gpu(name="4090", flops=165.2e12, memory=23 * GiB, bandwidth=1.008e12, pattern=r"\bRTX 4090$"),
    # NVIDIA GA102 architecture whitepaper, appendix A: 71 TFLOP/s, half of fp16's 142 into fp16; 24 GB, 936 GB/s
    Gpu(name="3090", flops=71e12, memory=23 * GiB, bandwidth=0.936e12, pattern=r"\bRTX 3090$"),
    # ours: one server core, 2 AVX-512 FMA units x 16 fp32 x 2 at 2.5 GHz, with 4 GiB and 20 GB/s
    Gpu(name="cpu", flops=0.16e12, memory=4 * GiB, bandwidth=20e9, pattern=r"^cpu$"),
)
"""torchtitan: pytorch/torchtitan, torchtitan/tools/utils.py, get_peak_flops. Composer: mosaicml/composer,
composer/callbacks/speed_monitor.py, GPU_AVAILABLE_FLOPS; both give TFLOP/s of bf16 without sparsity."""


def gpu_named(name: str) -> Gpu:
    """The table's row for `--gpu NAME`. Raises HardwareError."""
    found = next((gpu for gpu in GPUS if gpu.name == name.lower()), None)
    if found is None:
        raise HardwareError(f"no GPU {name!r} in the table of unimm/hardware.py; it has: "
                            f"{', '.join(gpu.name for gpu in GPUS)}")
    return found


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a device by `torch.cuda.get_device_name`, such as "NVIDIA H100 80GB HBM3".

    None for a device that the table lacks, and for a CPU, whose peak depends on the machine: no MFU is better than
    a wrong one.
    """
    return next((gpu.flops for gpu in GPUS if gpu.name != "cpu" and re.search(gpu.pattern, device_name)), None)


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
