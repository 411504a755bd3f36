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

import errno
import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from unimm.checkpoint import folders
from unimm.checkpoint.folders import CheckpointError
from unimm.disk import Digest, write_file
from unimm.weights import SPLIT, size_of, untied, write_tensors, write_weights


class Saver:
    """Writes a stage's checkpoints into `folder`, one at a time, and removes those that need not be kept.

    All `world` ranks write together in phases: what fails on one rank fails on all, at a phase's end. `gather` gives
    every rank's value of a small thing to all of them. It is called from the writer's thread, so it must not use a
    process group that anything else uses, and wait longer than rank 0 writes.
    """

    def __init__(self, folder: Path, keep: int = 2, keep_every: int = 0, rank: int = 0, world: int = 1,
                 gather: Callable[[object], list] = lambda value: [value], split: int = SPLIT):
        """Keeps the newest `keep` and those of steps divisible by `keep_every` (0: none of them)."""
        self.folder, self.keep, self.keep_every, self.split = folder, keep, keep_every, split
        self.rank, self.world, self.gather = rank, world, gather
        self._behind = ThreadPoolExecutor(1)  # a process that ends by an exception still finishes its checkpoint
        self._job: Future | None = None
        self._saved: Path | None = None
        self._weights: dict[str, Tensor] = {}
        self._training: dict[str, Tensor] = {}

    def save(self, step: int, weights: Mapping[str, Tensor], pieces: Mapping[str, Tensor], state: dict,
             recipe: dict) -> Path:
        """Copy everything to host memory and return; the copies are written behind. Every rank calls this together.

        `weights` (a whole `state_dict()`), `state` and `recipe` are rank 0's, elsewhere ignored; `pieces` are each
        rank's own, under the keys of `unimm.checkpoint.read`. Waits for the save before it, and raises what `wait`
        raises about that one. Returns the path that the checkpoint will have.
        """
        self.wait()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        about = state | {"step": step, "world": self.world, "written": now}
        texts = {name: json.dumps(facts, indent=1).encode()
                 for name, facts in (("state.json", about), ("recipe.json", recipe)) if self.rank == 0}
        self._weights = _on_host(untied(weights) if self.rank == 0 else {}, self._weights)
        self._training = _on_host(pieces, self._training)
        final = folders.final_of(self.folder, step)
        self._job = self._behind.submit(self._write, final, texts)
        return final

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

    def _write(self, final: Path, texts: dict[str, bytes]) -> None:
        """Write, sync, seal, rename, prune. Raises CheckpointError on every rank alike; older ones are then intact."""
        doing, part = f"write the checkpoint {final}", final.with_suffix(".part")
        own = size_of(self._weights) + size_of(self._training) + sum(map(len, texts.values()))
        try:
            self._needed = sum(self._together(doing, lambda: own))
            self._together(doing, partial(self._prepare, part), alone=True)
            written = self._together(doing, partial(self._files, part, texts))
            digests = {name: digest for files in written for name, digest in files.items()}
            self._together(doing, partial(folders.write_manifest, part, digests), alone=True)
            self._together(doing, partial(folders.commit, part), alone=True)
        except CheckpointError:
            if self.rank == 0 and part.is_dir() and folders.faults(part):
                shutil.rmtree(part, ignore_errors=True)
            raise
        self._saved = final
        self._together(f"remove checkpoints older than {final}", partial(self._prune, final), alone=True)

    def _prepare(self, part: Path) -> None:
        """Make room."""
        self.folder.mkdir(parents=True, exist_ok=True)
        folders.tidy(self.folder)
        free = shutil.disk_usage(self.folder).free
        if free < self._needed:
            raise CheckpointError(f"the disk is full; it takes {self._needed:,} bytes, {free:,} were free: free "
                                  f"{self._needed - free:,} more, or choose another folder")
        part.mkdir()

    def _files(self, part: Path, texts: dict[str, bytes]) -> dict[str, Digest]:
        """This rank's share of the files."""
        if not part.is_dir():
            raise CheckpointError(f"rank {self.rank} does not see {part}; use a disk that all ranks share")
        digests = {name: write_file(part / name, [text]) for name, text in texts.items()}
        if self._training:
            name = f"training-{self.rank:05d}.safetensors"
            digests[name] = write_tensors(part / name, self._training)
        return digests if self.rank else digests | write_weights(part, self._weights, self.split)

    def _prune(self, final: Path) -> None:
        """Of earlier steps remove all but `keep` - 1 and those divisible by `keep_every`, not the one just written."""
        if cut := folders.faults(final, every_byte=False):
            raise CheckpointError(cut[0])
        older = [path for path in folders.committed(self.folder) if folders.step_of(path) < folders.step_of(final)]
        for path in older[self.keep - 1:]:
            if not self.keep_every or folders.step_of(path) % self.keep_every:
                folders.remove(path)

    def _together(self, doing: str, act: Callable[[], object], alone: bool = False) -> list:
        """What `act` gave on every rank, or on rank 0 `alone`; where it failed on any, one CheckpointError on all."""
        value, why, cause = None, None, None
        try:
            value = act() if self.rank == 0 or not alone else None
        except Exception as error:
            why, cause = f"can't {doing}: {self._explained(error)}", error
        try:
            everyone = self.gather((value, why))
        except RuntimeError as error:
            raise CheckpointError(f"can't {doing}: another process is gone") from error
        for _, said in everyone:
            if said:
                raise CheckpointError(said) from cause
        return [value for value, _ in everyone]

    def _explained(self, error: Exception) -> str:
        said = getattr(error, "strerror", None)  # an OSError's
        if not said:
            return str(error) or type(error).__name__
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return (f"{said}; it takes {self._needed:,} bytes in all: free some, raise the quota or the limit on the "
                    "size of files (ulimit -f), or choose another folder")
        return f"{said} ({error.filename or self.folder}); repair it, make the folder writable, or choose another"


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
