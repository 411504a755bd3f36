"""A plan as text for people, and as JSON for programs."""

import dataclasses
import json

from unimm.plan.plan import Cluster, DataPlan, Plan, StagePlan, TokenizerPlan
from unimm.words import count, size, span

LAUNCHES = 0.02
"""Seconds; ours: hundreds of kernels at some 10 microseconds each way, and a reduction between nodes."""


def to_json(plan: Plan) -> str:
    """Every number of the plan; bytes, seconds, FLOP/s."""
    facts = dataclasses.asdict(plan)
    facts |= facts.pop("cluster") | {"nodes": plan.cluster.nodes}
    for stage, made in zip(facts["stages"], plan.stages):
        stage |= {"peak": made.peak, "gpu_hours": made.seconds * plan.cluster.gpus / 3600}
    return json.dumps(facts, indent=2)


def table(plan: Plan) -> list[str]:
    """The plan, a line at a time."""
    on, gpu = plan.cluster, plan.cluster.gpu
    many = f"{on.gpus:,} x {gpu.name} on {on.nodes:,} node{'s' if on.nodes > 1 else ''}"
    lines = [f"{plan.recipe} on {many}: {gpu.flops / 1e12:,.4g} TFLOP/s bf16, {gib(gpu.memory)}, "
             f"{size(gpu.bandwidth)}/s each",
             f"assumed: {on.mfu:.0%} of the peak, documents of {plan.document:,} tokens, networks and disks that "
             "keep up; nothing was run",
             _tokenizer(plan.tokenizer)]
    for stage in plan.stages:
        lines += ["", *_stage(stage, on)]
    return lines + ["", *_totals(plan)]


def _tokenizer(t: TokenizerPlan) -> str:
    return (f"image tokenizer {t.kind}: {count(t.elements)} parameters, {t.codes} x {t.codes} codes of "
            f"{t.image} x {t.image} pixels, {t.source}")


def _stage(stage: StagePlan, on: Cluster) -> list[str]:
    lines = [f"== {stage.name}", stage.equation, "", *(f"  {line}" for line in stage.table)]
    lines += ["", "  memory of a rank"]
    lines += [f"    {name:<12} {gib(number):>12}" for name, number in stage.memory.items() if number]
    verdict = "fits" if stage.fits else "DOES NOT FIT"
    lines.append(f"    {'together':<12} {gib(stage.peak):>12} of {gib(on.gpu.memory)}: {verdict}")
    if stage.host:
        lines.append(f"    {'host memory':<12} {gib(stage.host):>12} a rank, for what is offloaded")
    if stage.with_recompute < stage.without_recompute:
        lines.append(f"    activations: {gib(stage.without_recompute)} kept, {gib(stage.with_recompute)} recomputed")
    lines += ["", f"  {stage.steps:,} steps, {count(stage.total)} {stage.unit}, {stage.rate:,.0f} {stage.unit}/s, "
              f"{span(stage.seconds)}, {stage.seconds * on.gpus / 3600:,.1f} GPU hours, "
              f"MFU {stage.model_mfu:.0%}",
              f"  reads up to {size(stage.read_rate)}/s, {size(stage.read_rate / on.nodes)}/s a node; checkpoints of "
              f"{size(stage.checkpoint)}, {stage.kept} kept: {size(stage.checkpoint * stage.kept)}"]
    step = stage.seconds / stage.steps
    if step < LAUNCHES:
        lines.append(f"  too small for this cluster: a step of {span(step)} is less than its launches and "
                     "reductions take, so it will run far longer than this")
    return lines + [f"  PROBLEM: {problem}" for problem in stage.problems]


def _totals(plan: Plan) -> list[str]:
    seconds = sum(stage.seconds for stage in plan.stages)
    disk = sum(stage.checkpoint * stage.kept for stage in plan.stages) + sum(data.bytes for data in plan.data)
    return ["codes, as typed integers:", *[f"  {_data(data)}" for data in plan.data], "",
            f"together {span(seconds)}, {seconds * plan.cluster.gpus / 3600:,.1f} GPU hours, {size(disk)} on disk"]


def _data(data: DataPlan) -> str:
    assumed = "" if data.known else " (assumed: --images says how many)"
    return (f"{data.name}: {data.images:,} images{assumed} x {data.bytes_per_image:,} bytes = {size(data.bytes)}, "
            "captions beside them")


def gib(number: float) -> str:
    return f"{number / 2**30:,.2f} GiB" if number >= 2**30 / 10 else f"{number / 2**20:,.2f} MiB"
