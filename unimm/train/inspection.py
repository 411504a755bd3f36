"""A batch that went wrong, as two files that a person can open: its arrays, and what is known about it."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unimm.disk import replace_file, writing
from unimm.losses import Losses


def faults(losses: Sequence[Losses]) -> list[str]:
    """What is not finite among this rank's losses, such as "loss/image is nan"; empty where all is well."""
    named = [("loss", float(each.total.detach())) for each in losses]
    named += [(f"loss/{part}", float(total)) for each in losses for part, (total, _) in each.parts.items()]
    return list(dict.fromkeys(f"{name} is {value}" for name, value in named if not math.isfinite(value)))


def save_batch(stem: Path, batch, losses: Sequence[Losses], facts: Mapping) -> Path:
    """Write STEM.safetensors (every array of `batch`, named by its place in it) and STEM.json; returns the latter.

    The JSON holds `facts`, the batch's plain values and the losses of each forward pass, part by part.
    Raises DiskError.
    """
    from safetensors.torch import save_file

    arrays, plain = {}, {}
    for name, value in _leaves(batch, ""):
        if isinstance(value, np.ndarray | Tensor):
            arrays[name] = torch.as_tensor(value).detach().cpu().contiguous().clone()
        else:
            plain[name] = value
    passes = [{"loss": float(each.total.detach()),
               "parts": {part: {"sum": float(total), "count": float(count)}
                         for part, (total, count) in each.parts.items()}} for each in losses]
    text = json.dumps({**facts, "losses": passes, "values": plain}, default=str)
    # Python's JSON writes NaN as such, which jq and browsers refuse: as text it survives every reader.
    text = json.dumps(json.loads(text, parse_constant=lambda name: str(float(name))), indent=1, ensure_ascii=False)
    with writing(stem):
        stem.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, stem.with_suffix(".safetensors"))
    replace_file(stem.with_suffix(".json"), text.encode())
    return stem.with_suffix(".json")


def _leaves(value, name: str) -> Iterator[tuple[str, object]]:
    """Everything in a batch that is no container, under names such as "ids", "1", "slots.0.1.payload"."""
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        yield name or "batch", value
        return
    for key, inner in value.items():
        yield from _leaves(inner, f"{name}.{key}" if name else str(key))
