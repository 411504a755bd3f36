"""Saving: a snapshot in memory, then everything written aside, hashed, synced and renamed behind the training.

    step-00001234/
      model.safetensors           whole weights under the module's own names (split with an index above 5 GB)
      training-00000.safetensors  one per rank that has any: its pieces, see pieces.py
      state.json                  step, world and what the caller adds: the stream's place, tokens, seconds, ...
      recipe.json                 the resolved recipe
      manifest.json               size and sha256 of each file above, and of itself; written last
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.distributed import ProcessGroup

from unimm.checkpoint.pieces import Piece
from unimm.checkpoint.tensors import SPLIT


@dataclass(frozen=True)
class Peers:
    """The other processes that save together. `gather` gives every rank's value of a small thing to all of them.

    It is called from the writer's thread, so it must not use a process group that anything else uses.
    """

    rank: int = 0
    world: int = 1
    gather: Callable[[object], list] = lambda value: [value]

    @classmethod
    def over(cls, group: ProcessGroup | None) -> "Peers":
        """The ranks of a gloo group made for this alone, `dist.new_group(backend="gloo", timeout=...)` with a timeout
        longer than rank 0 writes; without a group, this process alone."""
        raise NotImplementedError


class Saver:
    """Writes a stage's checkpoints into `folder`, one at a time, and removes those that need not be kept."""

    def __init__(self, folder: Path, keep: int = 2, keep_every: int = 0, peers: Peers = Peers(),
                 background: bool = True, split: int = SPLIT):
        """Keeps the newest `keep` and those of steps divisible by `keep_every` (0: none of them)."""
        raise NotImplementedError

    def save(self, step: int, weights: Mapping[str, Tensor], pieces: Iterable[Piece], state: dict,
             recipe: dict) -> Path:
        """Copy everything to host memory and return; the copies are written behind. Every rank calls this together.

        `weights` (a whole `state_dict()`), `state` and `recipe` are rank 0's, elsewhere ignored; `pieces` are each
        rank's own. Waits for the save before it, and raises what `wait` raises about that one.
        Returns the path that the checkpoint will have.
        """
        raise NotImplementedError

    def wait(self) -> Path | None:
        """Finish what is under way; the newest checkpoint written. Raises CheckpointError, on every rank alike.

        What to do about it: stop. The last checkpoint is intact, the message says path and remedy.
        """
        raise NotImplementedError

    def done(self) -> Path | None:
        """The newest checkpoint known to be whole on disk, without waiting."""
        raise NotImplementedError

    @property
    def failed(self) -> bool:
        """Whether the save behind has ended in an error. Ranks learn of it at different moments: let the collective of
        a step carry it, and call `wait()` on all of them."""
        raise NotImplementedError
