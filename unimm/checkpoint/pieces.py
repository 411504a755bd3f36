"""Training state that any number of processes can read back, whoever wrote it.

A Piece is a run of consecutive elements of one flattened parameter, with everything that is kept beside
them. Each rank writes the pieces it holds to its own `training-RRRRR.safetensors`, one 1-D tensor a key:

    blocks.0.weight[128:256].exp_avg

so the files of N ranks, cut anywhere, serve M ranks that cut elsewhere.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from unimm.checkpoint.manifest import CheckpointError
from unimm.weights import Stored, open_weights

KEY = re.compile(r"(.+)\[(\d+):(\d+)\]\.(\w+)")


@dataclass(frozen=True)
class Piece:
    """Elements [start, start + n) of the flattened parameter `name`, the module's own name for it.

    `tensors` maps what is kept ("master", "exp_avg", "exp_avg_sq", "momentum", "ema") to (n,), fp32 as a rule.
    """

    name: str
    start: int
    tensors: dict[str, Tensor]


def keyed(pieces: Iterable[Piece]) -> dict[str, Tensor]:
    """Pieces under the keys of their file."""
    return {f"{p.name}[{p.start}:{p.start + len(t)}].{kind}": t for p in pieces for kind, t in p.tensors.items()}


class Part(NamedTuple):
    start: int
    stop: int
    stored: Stored


class Pieces:
    """Reads any range of any parameter, and no more, out of the training files of a checkpoint that was verified.

    Raises StoredError where one can't be read, CheckpointError where it holds something else.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._parts: dict[str, dict[str, list[Part]]] = {}
        for path in sorted(folder.glob("training-*.safetensors")):
            for key, stored in open_weights(path).items():
                match = KEY.fullmatch(key)
                if not match:
                    raise CheckpointError(f"{path} is no training state: it has a tensor named {key!r}")
                name, start, stop, kind = match.groups()
                parts = self._parts.setdefault(name, {}).setdefault(kind, [])
                parts.append(Part(int(start), int(stop), stored))

    def __call__(self, name: str, start: int, stop: int, only: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Everything (or `only` some of what is) kept for elements [start, stop) of `name`: kind -> (stop - start,).

        Raises CheckpointError where the files don't hold all of them.
        """
        kinds = self.kinds(name) if only is None else set(only)
        if not kinds:
            raise CheckpointError(f"{self.folder} has no training state for {name}")
        return {kind: self._range(name, kind, start, stop) for kind in sorted(kinds)}

    def names(self) -> set[str]:
        return set(self._parts)

    def kinds(self, name: str) -> set[str]:
        """What is kept for `name`; nothing where it did not train."""
        return set(self._parts.get(name, {}))

    def _range(self, name: str, kind: str, start: int, stop: int) -> Tensor:
        found, at = [], start
        for part in sorted(self._parts.get(name, {}).get(kind, []), key=lambda part: part.start):
            if part.start <= at < part.stop and at < stop:
                end = min(part.stop, stop)
                found.append(part.stored.read()[at - part.start:end - part.start])  # of a memory map
                at = end
        if at < stop:
            raise CheckpointError(f"{self.folder} lacks elements {at:,} to {stop:,} of {name}, {kind}")
        return torch.cat(found) if found else torch.empty(0)
