"""Training state that any number of processes can read back, whoever wrote it.

A Piece is a run of consecutive elements of one flattened parameter, with everything that is kept beside
them. Each rank writes the pieces it holds to its own `training-RRRRR.safetensors`, one 1-D tensor a key:

    blocks.0.weight[128:256].exp_avg

so the files of N ranks, cut anywhere, serve M ranks that cut elsewhere.
"""

import re
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unimm.checkpoint.manifest import CheckpointError
from unimm.checkpoint.tensors import reading

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
    key: str
    file: Any
    """An open safetensors file."""


class Pieces:
    """Reads any range of any parameter out of the training files of a checkpoint that was verified.

    The files stay open, and are read only where asked, until `close()`.
    """

    def __init__(self, folder: Path):
        from safetensors import safe_open

        self.folder = folder
        self._open = ExitStack()
        self._parts: dict[str, dict[str, list[Part]]] = {}
        for path in sorted(folder.glob("training-*.safetensors")):
            with reading(path):
                file = self._open.enter_context(safe_open(path, framework="pt"))
            for key in file.keys():
                match = KEY.fullmatch(key)
                if not match:
                    raise CheckpointError(f"{path} is no training state: it has a tensor named {key!r}")
                name, start, stop, kind = match.groups()
                parts = self._parts.setdefault(name, {}).setdefault(kind, [])
                parts.append(Part(int(start), int(stop), key, file))

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

    def close(self) -> None:
        self._open.close()

    def _range(self, name: str, kind: str, start: int, stop: int) -> Tensor:
        found, at = [], start
        for part in sorted(self._parts.get(name, {}).get(kind, []), key=lambda part: part.start):
            if part.start <= at < part.stop and at < stop:
                end = min(part.stop, stop)
                found.append(part.file.get_slice(part.key)[at - part.start:end - part.start])
                at = end
        if at < stop:
            raise CheckpointError(f"{self.folder} lacks elements {at:,} to {stop:,} of {name}, {kind}")
        return torch.cat(found) if found else torch.empty(0)
