"""Finding the newest whole checkpoint, and reading from it.

Training state that any number of processes can read back, whoever wrote it.

A piece is a run of consecutive elements of one flattened parameter, with everything that is kept beside
them. Each rank writes the pieces it holds to its own `training-RRRRR.safetensors`, one 1-D tensor a key:

    blocks.0.weight[128:256].exp_avg

so the files of N ranks, cut anywhere, serve M ranks that cut elsewhere.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from unimm.checkpoint.folders import CheckpointError, candidates, faults, set_aside, tidy
from unimm.weights import Stored, open_weights, untied

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
        self.parts: dict[str, dict[str, list[tuple[int, int, Stored]]]] = {}  # name -> kind -> start, stop, elements
        for path in sorted(folder.glob("training-*.safetensors")):
            for key, stored in open_weights(path).items():
                match = KEY.fullmatch(key)
                if not match:
                    raise CheckpointError(f"{path} is no training state: it has a tensor named {key!r}")
                name, start, stop, kind = match.groups()
                self.parts.setdefault(name, {}).setdefault(kind, []).append((int(start), int(stop), stored))

    def __call__(self, name: str, start: int, stop: int) -> dict[str, Tensor]:
        """Everything kept for elements [start, stop) of `name`: kind -> (stop - start,).

        Raises CheckpointError where the files don't hold all of them.
        """
        if name not in self.parts:
            raise CheckpointError(f"{self.folder} has no training state for {name}")
        return {kind: self.range(name, kind, start, stop) for kind in sorted(self.parts[name])}

    def range(self, name: str, kind: str, start: int, stop: int) -> Tensor:
        """One of the kinds kept for elements [start, stop) of `name`."""
        found, at = [], start
        for first, last, stored in sorted(self.parts[name][kind], key=lambda part: part[0]):
            if first <= at < min(last, stop):
                found.append(stored.read()[at - first:min(last, stop) - first])  # of a memory map
                at = min(last, stop)
        if at < stop:
            raise CheckpointError(f"{self.folder} lacks elements {at:,} to {stop:,} of {name}, {kind}")
        return torch.cat(found) if found else torch.empty(0)


def take_up(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The checkpoint that a run continues from; None where there is none at all. Rank 0 calls this alone, once.

    Tidies what a kill left, and sets newer, damaged ones aside, saying so. Raises CheckpointError where the folder
    can't be changed or all are damaged; then none is set aside, so that a run is never begun anew by mistake.
    """
    bad: list[tuple[Path, str]] = []
    try:
        tidy(folder)
        found = newest(folder, bad)
        for path, why in bad:
            say(f"{why}; kept as {set_aside(path).name}, continuing from the older {found.name}")
    except OSError as error:
        raise CheckpointError(f"can't tidy {error.filename or folder}: {error.strerror}") from error
    return found


def newest(folder: Path, bad: list[tuple[Path, str]] | None = None) -> Path | None:
    """The newest checkpoint in `folder` that verifies, or None where there is none at all; nothing is changed on disk.

    Newer ones that do not are added to `bad`, with why. Raises CheckpointError where all are damaged.
    """
    bad = [] if bad is None else bad
    for path in candidates(folder):
        why = "; ".join(faults(path))
        if not why:
            return path
        bad.append((path, why))
    if bad:
        raise CheckpointError(f"none of the {len(bad)} checkpoints in {folder} is whole; repair one, or start in "
                              f"another folder ({'; '.join(why for _, why in bad)})")
    return None


def read_state(path: Path) -> dict:
    return json.loads((path / "state.json").read_bytes())


def read_recipe(path: Path) -> dict:
    return json.loads((path / "recipe.json").read_bytes())


def read_weights(path: Path, ema: bool | None = None) -> Iterator[tuple[str, Tensor]]:
    """A checkpoint's weights by name, one at a time: as the stage leaves them, that is averaged if it has `ema`.

    True asks for the averages and False for the weights that were trained on, both put together from the pieces of
    all ranks, in the dtype of the weights. Raises CheckpointError where the checkpoint has no such pieces, StoredError.
    """
    kind = "ema" if ema else "master"
    pieces = None if ema is None else Pieces(path)
    if pieces and not any(kind in kept for kept in pieces.parts.values()):
        raise CheckpointError(f"{path} has no averaged weights: its stage had no ema" if ema else
                              f"{path} has no training state, so no weights but those it was exported with")
    for name, stored in open_weights(path).items():
        if pieces and kind in pieces.parts.get(name, ()):
            whole = pieces.range(name, kind, 0, torch.Size(stored.shape).numel())
            yield name, whole.reshape(stored.shape).to(stored.dtype)
        else:
            yield name, stored.read()


def load_weights(path: Path, module: nn.Module, ema: bool | None = None) -> None:
    """Put a verified checkpoint's weights into `module`; which ones is said at `read_weights`.

    Raises CheckpointError where names or shapes differ, or where the weights asked for are not there.
    """
    here = module.state_dict()
    ours, theirs = ({name: f"shape {tuple(t.shape)}" for name, t in found.items()}
                    for found in (here, open_weights(path)))
    for name in sorted(theirs.keys() | untied(here).keys()):
        if (own := ours.get(name, "none")) != (saved := theirs.get(name, "none")):
            raise CheckpointError(f"{path} is of another model: for {name} it has {saved}, this model {own}")
    for name, t in read_weights(path, ema):
        here[name].copy_(t)


def load_buffers(path: Path, module: nn.Module) -> None:
    """Put back what is no parameter and yet learns, such as a codebook of averages; parameters are left alone.

    For a module whose parameters an engine holds: they come back from pieces.
    """
    here, parameters = module.state_dict(), dict(module.named_parameters(remove_duplicate=False))
    for name, stored in open_weights(path).items():
        if name in here and name not in parameters:
            here[name].copy_(stored.read())
