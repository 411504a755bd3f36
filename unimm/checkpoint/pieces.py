"""Training state that any number of processes can read back, whoever wrote it.

A piece is a run of consecutive elements of one flattened parameter, with everything that is kept beside
them. Each rank writes the pieces it holds to its own `training-RRRRR.safetensors`, one 1-D tensor a key:

    blocks.0.weight[128:256].exp_avg

so the files of N ranks, cut anywhere, serve M ranks that cut elsewhere.
"""

import re
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from unimm.checkpoint.folders import CheckpointError
from unimm.weights import Stored, open_weights

KEY = re.compile(r"(.+)\[(\d+):(\d+)\]\.(\w+)")


def keyed(name: str, start: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A piece under the keys of its file: elements [start, start + n) of the flattened parameter `name`.

    `tensors` maps what is kept ("master", "exp_avg", "exp_avg_sq", "momentum", "ema") to (n,), fp32 as a rule.
    """
    return {f"{name}[{start}:{start + len(t)}].{kind}": t for kind, t in tensors.items()}


class Pieces:
    """Reads any range of any parameter, and no more, out of the training files of a checkpoint that was verified.

    Raises StoredError where one can't be read, CheckpointError where it holds something else.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._parts: dict[str, dict[str, list[tuple[int, int, Stored]]]] = defaultdict(lambda: defaultdict(list))
        for path in sorted(folder.glob("training-*.safetensors")):
            for key, stored in open_weights(path).items():
                match = KEY.fullmatch(key)
                if not match:
                    raise CheckpointError(f"{path} is no training state: it has a tensor named {key!r}")
                name, start, stop, kind = match.groups()
                self._parts[name][kind].append((int(start), int(stop), stored))

    def __call__(self, name: str, start: int, stop: int) -> dict[str, Tensor]:
        """Everything kept for elements [start, stop) of `name`: kind -> (stop - start,).

        Raises CheckpointError where the files don't hold all of them.
        """
        if name not in self._parts:
            raise CheckpointError(f"{self.folder} has no training state for {name}")
        return {kind: self.range(name, kind, start, stop) for kind in sorted(self.kinds(name))}

    def names(self) -> set[str]:
        return set(self._parts)

    def kinds(self, name: str) -> set[str]:
        """What is kept for `name`; nothing where it did not train."""
        return set(self._parts.get(name, ()))

    def range(self, name: str, kind: str, start: int, stop: int) -> Tensor:
        """One of the kinds kept for elements [start, stop) of `name`."""
        found, at = [], start
        for first, last, stored in sorted(self._parts[name][kind], key=lambda part: part[0]):
            if first <= at < min(last, stop):
                found.append(stored.read()[at - first:min(last, stop) - first])  # of a memory map
                at = min(last, stop)
        if at < stop:
            raise CheckpointError(f"{self.folder} lacks elements {at:,} to {stop:,} of {name}, {kind}")
        return torch.cat(found) if found else torch.empty(0)
