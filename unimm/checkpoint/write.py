"""Saving: a snapshot in memory, then everything written aside, hashed, synced and renamed behind the training.

    step-00001234/
      model.safetensors           whole weights under the module's own names (split with an index above 5 GB)
      training-00000.safetensors  one per rank that has any: its pieces, see pieces.py
      state.json                  step, world and what the caller adds: the stream's place, tokens, seconds, ...
      recipe.json                 the resolved recipe
      manifest.json               size and sha256 of each file above, and of itself; written last

A process killed at any moment leaves the older checkpoints and at most a `.part`, see folders.py. The folder
must be on a disk that all ranks share.
"""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from unimm.checkpoint.folders import final_of
from unimm.checkpoint.phases import Peers, Write
from unimm.checkpoint.pieces import Piece, keyed
from unimm.checkpoint.tensors import SPLIT, untied


class Saver:
    """Writes a stage's checkpoints into `folder`, one at a time, and removes those that need not be kept."""

    def __init__(self, folder: Path, keep: int = 2, keep_every: int = 0, peers: Peers | None = None,
                 split: int = SPLIT):
        """Keeps the newest `keep` and those of steps divisible by `keep_every` (0: none of them)."""
        self.folder, self.keep, self.keep_every, self.split = folder, keep, keep_every, split
        self.peers = peers or Peers()
        self._behind = ThreadPoolExecutor(1)  # a process that ends by an exception still finishes its checkpoint
        self._job: Future | None = None
        self._saved: Path | None = None
        self._weights: dict[str, Tensor] = {}
        self._training: dict[str, Tensor] = {}

    def save(self, step: int, weights: Mapping[str, Tensor], pieces: Iterable[Piece], state: dict,
             recipe: dict) -> Path:
        """Copy everything to host memory and return; the copies are written behind. Every rank calls this together.

        `weights` (a whole `state_dict()`), `state` and `recipe` are rank 0's, elsewhere ignored; `pieces` are each
        rank's own. Waits for the save before it, and raises what `wait` raises about that one.
        Returns the path that the checkpoint will have.
        """
        self.wait()
        first = self.peers.rank == 0
        now = datetime.now(UTC).isoformat(timespec="seconds")
        about = state | {"step": step, "world": self.peers.world, "written": now}
        texts = {"state.json": json.dumps(about, indent=1).encode(),
                 "recipe.json": json.dumps(recipe, indent=1).encode()} if first else {}
        self._weights = _on_host(untied(weights) if first else {}, self._weights)
        self._training = _on_host(keyed(pieces), self._training)
        job = Write(final_of(self.folder, step), self.peers, self._weights, self._training, texts, self.split)
        self._job = self._behind.submit(self._do, job)
        return job.final

    def wait(self) -> Path | None:
        """Finish what is under way; the newest checkpoint written. Raises CheckpointError, on every rank alike.

        What to do about it: stop. Training on would be work that nothing keeps; the last checkpoint is intact, and
        the message says the path and the remedy, after which the same command continues.
        """
        if self._job:
            job, self._job = self._job, None
            job.result()
        return self._saved

    @property
    def failed(self) -> bool:
        """Whether the save behind has ended in an error. Ranks learn of it at different moments: let the collective of
        a step carry it, and call `wait()` on all of them."""
        return self._job is not None and self._job.done() and self._job.exception() is not None

    def _do(self, job: Write) -> None:
        job.run()
        self._saved = job.final
        job.prune(self.keep, self.keep_every)


def _on_host(tensors: Mapping[str, Tensor], held: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies, in the memory of an earlier save's where it fits: fresh pages cost more than copying into them."""
    copies = {}
    for name, t in tensors.items():
        place = held.get(name)
        if place is None or place.shape != t.shape or place.dtype != t.dtype:
            place = torch.empty(t.shape, dtype=t.dtype, pin_memory=t.is_cuda)
        copies[name] = place.copy_(t.detach(), non_blocking=True)
    if any(t.is_cuda for t in tensors.values()):
        torch.cuda.synchronize()
    return copies
