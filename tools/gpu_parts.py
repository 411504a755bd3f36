"""What tools/gpu_check.py measures, each part in a process of its own:

    python -m tools.gpu_parts PART FILE [--toy]         writes {name: figure} as JSON

A part that makes a figure checks what it computes first: kernels against float64, losses against full logits, the
first steps of a run against those of Trainer (by tools/gpu_check.py, for they are runs of their own).
"""

import argparse
import contextlib
import io
import json
import math
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from tools import samplers
from tools.bench import step
from tools.bench.rows import Unequal, equal
from tools.losses import by_chunks, by_liger, by_torch
from unimm.config.model import FreshBackbone
from unimm.hardware import Multiplied, gpus, peak_flops
from unimm.model.attention import Documents, attend, available, choose
from unimm.model.cross_entropy import weighted_loss
from unimm.train.loop import Work, run_stage

VOCAB = 168_320  # Qwen's 151,936 rows and a codebook of 16,384
WARM, LOG = 5, 5
"""Steps before the clock starts, the first compilation among them; steps of one line of the log."""
SIZES = {
    # The shapes of Qwen2.5-0.5B and 1.5B, with heads and tables of their own as a fresh model has them.
    "0.5b": step.Size(name="0.5 B, 4 x 4096", vocab=VOCAB, rows=4, seq_len=4096, document=600, steps=20,
                      model=FreshBackbone(width=896, layers=24, heads=14, kv_heads=2, mlp=4864)),
    "1.5b": step.Size(name="1.5 B, 4 x 4096", vocab=VOCAB, rows=4, seq_len=4096, document=600, steps=15,
                      model=FreshBackbone(width=1536, layers=28, heads=12, kv_heads=2, mlp=8960)),
}


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def now() -> float:
    """Seconds on the wall, all that was asked of the device being done: a GPU's time is no process's CPU time."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak() -> int:
    """The most bytes that the device has held so far; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def timed(run: Callable[[], object], repeats: int) -> float:
    """Milliseconds: the least of `repeats`, after one for warming up."""
    run()
    best = float("inf")
    for _ in range(repeats):
        began = now()
        run()
        best = min(best, now() - began)
    return best * 1e3


class Enough(Exception):
    """The stream is at its end: the run stops there, before it would save gigabytes."""


class Wall(step.Batches):
    """Batches with the clock on the wall, waited for only where the timing begins and ends."""

    def next(self):
        mark = self.at in (WARM, len(self.batches))
        self.clock.times.append(now() if mark else time.perf_counter())
        self.at += 1
        if self.at > len(self.batches):
            raise Enough
        return self.batches[self.at - 1]


def model_and_batches(size: step.Size):
    with device():
        module = step.build(size).to(device())
    return module, [step.packed(size, i) for i in range(size.steps)]


def figures(size: step.Size, module, seconds: float, losses: list[float]) -> dict:
    """Of one run: step time, rate, share of the peak, memory."""
    tokens = size.rows * size.seq_len
    table = size.vocab * size.model.width
    body = sum(p.numel() for p in module.parameters()) - 2 * table
    multiplied = Multiplied(body=body, head=table, layers=size.model.layers, width=size.model.width)
    flops = multiplied.flops(size.document)
    top = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return {"ms_per_step": seconds * 1e3, "tokens_per_second": tokens / seconds,
            "mfu": flops * tokens / seconds / top if top else None, "peak_gib": peak() / 2**30, "losses": losses}


def ours(size: step.Size, **changes) -> dict:
    """Our loop, logging and all, in bf16."""
    module, batches = model_and_batches(size)
    stream = Wall(batches)
    stage = step.stage(size, 10**6, LOG, precision="bf16", **changes)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        with contextlib.suppress(Enough):
            run_stage(Work(module, stream), stage, Path(folder))
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    seconds = (stream.clock.times[-1] - stream.clock.times[WARM]) / (len(batches) - WARM)
    return figures(size, module, seconds, [line["loss"] for line in lines if "loss" in line])


def theirs(size: step.Size) -> dict:
    """Trainer on the same weights and batches, bf16 autocast; flash-attn where it is installed, else torch's SDPA."""
    module, batches = model_and_batches(size)
    with device():
        model = step.stock(module, "flash_attention_2" if "flash-attn 2" in available(device()) else "sdpa")
    model.to(device())
    marks = {WARM: 0.0, len(batches) - 1: 0.0}

    def clock(done: int) -> None:
        if done in marks:
            marks[done] = now()

    run = step.theirs(model, batches, LOG, on_step=clock, bf16=True)
    begin, end = marks.values()
    return figures(size, model, (end - begin) / (len(batches) - 1 - WARM), run.losses) | {
        "attention": model.config._attn_implementation}


def reference(query, key, value, edges: list[int]) -> torch.Tensor:
    """Every document alone, in float64: (1, H, T, D) -> (1, T, H, D)."""
    groups = query.shape[1] // key.shape[1]
    q, k, v = query.double(), key.double().repeat_interleave(groups, 1), value.double().repeat_interleave(groups, 1)
    parts = []
    for a, b in zip(edges, edges[1:]):
        scores = q[:, :, a:b] @ k[:, :, a:b].mT * q.shape[-1] ** -0.5
        seen = torch.ones(b - a, b - a, dtype=torch.bool, device=q.device).tril()
        parts.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v[:, :, a:b])
    return torch.cat(parts, 2).transpose(1, 2)


def attention(toy: bool) -> dict:
    """Every kernel that runs here: its distance from float64, forward and backward, and its time."""
    tokens, heads, groups, width = (96, 4, 2, 16) if toy else (8192, 12, 2, 128)
    torch.manual_seed(0)
    make = dict(device=device(), dtype=torch.bfloat16, requires_grad=True)
    query, key, value = (torch.randn(1, h, tokens, width, **make) for h in (heads, groups, groups))
    document = 1 + torch.arange(tokens, device=device())[None] // (tokens // 12)
    lengths = (tuple(document[0].bincount()[1:].tolist()),)
    seed = torch.randn(1, tokens, heads, width, device=device(), dtype=torch.bfloat16)

    def both(kernel) -> list[torch.Tensor]:
        out = attend(None, query, key, value, None, documents=Documents(document, lengths, kernel))[0]
        return [out, *torch.autograd.grad(out, (query, key, value), seed)]

    exact = reference(query, key, value, Documents(document, lengths).edges)
    exact = [exact, *torch.autograd.grad(exact, (query, key, value), seed.double())]
    found = {"chosen": choose(available(device()), torch.bfloat16, tokens, width, False)}
    for kernel in sorted({*available(device()), "documents", *(["mask"] if tokens <= 8192 else [])}):
        far = 0.0
        for name, a, b in zip(("output", "query", "key", "value"), both(kernel), exact):
            scale = b.detach().abs().max().item()
            equal(f"{kernel}: {name} and float64", a / scale, b / scale, 0.02)  # bf16 has eight bits
            far = max(far, (a.double() - b).detach().abs().max().item() / scale)
        found[kernel] = {"ms": timed(lambda kernel=kernel: both(kernel), 2 if toy else 10), "apart": far}
    return found


def loss(toy: bool) -> dict:
    """Every way to the loss against full logits, as transformers computes it: memory and time, forward and backward."""
    tokens, width, vocab = (64, 16, 128) if toy else (8192, 1536, VOCAB)
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, device=device(), dtype=torch.bfloat16, requires_grad=True)
    head = torch.nn.Linear(width, vocab, bias=False, device=device(), dtype=torch.bfloat16)
    targets, weights = torch.randint(vocab, (tokens,), device=device()), torch.ones(tokens, device=device())

    def full():
        return F.cross_entropy(head(hidden).float(), targets, reduction="sum")

    losses = {"one pass": weighted_loss, "chunks": by_chunks}
    losses |= {"torch": by_torch} if hasattr(F, "linear_cross_entropy") else {}
    losses |= {"liger": by_liger} if _has_liger() else {}
    ways = {"full logits": full} | {
        name: lambda made=made: made(hidden, head, targets, weights)[0] for name, made in losses.items()}
    exact, found = None, {}
    for name, way in ways.items():
        def run(way=way):
            total = way()
            return [total, *torch.autograd.grad(total, (hidden, head.weight))]

        results = [x.detach().float() for x in run()]
        exact = exact or results
        for what, a, b in zip(("loss", "gradient of hidden", "gradient of the head"), results, exact):
            scale = b.detach().abs().max().item()
            equal(f"{name}: {what} and full logits'", a / scale, b / scale, 0.02)
        del results, a, b
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
        found[name] = {"ms": timed(run, 2 if toy else 5), "gib": max(0, peak() - before) / 2**30}
    return found


def _has_liger() -> bool:
    import importlib.util

    return torch.cuda.is_available() and importlib.util.find_spec("liger_kernel") is not None


def steps(size: str, kind: str, toy: bool) -> dict:
    given = replace(step.TOY[0], steps=10, name=f"{size} as a toy") if toy else SIZES[size]
    match kind:
        case "trainer":
            return theirs(given)
        case "zero0":
            return ours(given)
        case "zero1":
            return ours(given, zero=1)
        case "recompute":
            return ours(given, zero=1, recompute=True)
        case "compile":
            return ours(given, zero=1, compile=True)
        case _:
            raise ValueError(kind)


BATCHES = (1, 2, 64)
"""Rows of a forward: an image without guidance, one with both its branches, 32 such."""


def sampling(size: str, toy: bool) -> dict:
    """Milliseconds per id of images, at every batch beside what the memory allows, and by eager `generate`.

    The ids of every way are equal first: in float32 where any choice is close, in bfloat16 where none is.
    """
    shape, side, small = (step.TOY[0].model, 3, 2) if toy else (SIZES[size].model, 24, 12)
    text, codes = (300, 64) if toy else (VOCAB - 16_384, 16_384)
    make = dict(text=text, codes=codes, sizes=((side, side), (small, small)), device=device().type)
    one = samplers.Ask(samplers.caption(), (small, small), 3.0)
    check = samplers.world(shape, **make)
    ids = samplers.greedy(check, [one])[0]
    equal(f"{size}: ids of our loop and generate's, float32", ids, samplers.image(check, one))
    equal(f"{size}: ids of the fast path and the module", ids, samplers.greedy(check, [one], fast=False)[0])
    del check
    world = samplers.world(shape, sure=True, dtype=torch.bfloat16, **make)
    ms, ids = decoding(world, [one])
    equal(f"{size}: ids of our loop and generate's, bfloat16", ids, samplers.image(world, one))
    found = {"generate": {"ours": ms, "generate": timed(lambda: samplers.image(world, one), 1) / len(ids)},
             "wanted_ms": {"0.5b": 0.60, "1.5b": 1.23}[size]}
    del world.__dict__["peer"]
    for batch in BATCHES:
        ask = samplers.Ask(samplers.caption(), (side, side), 3.0 if batch > 1 else 1.0)
        ms, ids = decoding(world, [ask] * max(1, batch // 2))
        found[f"batch {batch}"] = {"ms": ms, "limit_ms": at_least(world, ask, batch, len(ids))}
    return found


def decoding(world: samplers.World, asks: list[samplers.Ask]) -> tuple[float, list[int]]:
    """Milliseconds per id of each of some equal asks in one batch, and the ids."""
    loop = samplers.decoder(world, len(asks))  # kept, and with it what a GPU captures once
    first, *others = samplers.run(loop, [samplers.requested(ask) for ask in asks])
    for other in others:
        equal(f"ids of one prompt in a batch of {len(asks)}", other, first)
    return timed(lambda: samplers.run(loop, [samplers.requested(ask) for ask in asks]), 2) / len(first), first


def at_least(world: samplers.World, ask: samplers.Ask, rows: int, written: int) -> float:
    """Milliseconds in which the device can read what a step of so many rows reads: the body's weights, the head's rows
    of codes, and keys and values of half of what is written."""
    config = world.model.backbone.config
    tables = (world.model.backbone.get_input_embeddings().weight, world.model.backbone.get_output_embeddings().weight)
    weights = sum(p.numel() for p in world.model.parameters()) - sum(t.numel() for t in tables)
    weights += world.layout.vocab.ranges["visual"].codes * config.hidden_size
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    length = world.prompt(ask).shape[1] + written / 2
    cache = rows * length * config.num_hidden_layers * 2 * config.num_key_value_heads * head
    return (weights + cache) * tables[0].element_size() / bandwidth() * 1e3


def bandwidth() -> float:
    """Bytes per second of this device's memory, after unimm/hardware.py; NaN for one that it lacks."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return next((gpu.bandwidth for gpu in gpus() if re.search(gpu.pattern, name)), math.nan)


def part(name: str, toy: bool) -> dict:
    match name.split():
        case ["sampling", size]:
            return sampling(size, toy)
        case ["attention"]:
            return attention(toy)
        case ["loss"]:
            return loss(toy)
        case ["step", size, kind]:
            return steps(size, kind, toy)
        case _:
            raise ValueError(name)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part")
    parser.add_argument("file", type=Path)
    parser.add_argument("--toy", action="store_true")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    try:
        found = part(given.part, given.toy)
    except (Unequal, torch.OutOfMemoryError) as why:  # both are results, and worth their words without a traceback
        found = {"error": f"{type(why).__name__}: {str(why).splitlines()[0]}"}
    given.file.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
