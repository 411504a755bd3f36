"""One checkpoint, written by all ranks together in phases: what fails on one rank fails on all, at a phase's end."""

import errno
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from unimm.checkpoint.folders import commit, committed, remove, step_of, tidy
from unimm.checkpoint.manifest import CheckpointError, faults, write_manifest
from unimm.checkpoint.tensors import size_of, write_tensors, write_weights
from unimm.disk import Digest, write_file


@dataclass(frozen=True)
class Peers:
    """The other processes that save together. `gather` gives every rank's value of a small thing to all of them.

    It is called from the writer's thread, so it must not use a process group that anything else uses, and wait longer
    than rank 0 writes.
    """

    rank: int = 0
    world: int = 1
    gather: Callable[[object], list] = lambda value: [value]


@dataclass
class Write:
    """One checkpoint to write: this rank's share of it, in memory that nobody changes meanwhile.

    weights   whole, rank 0's; split into files of at most `split` bytes
    training  this rank's pieces under their keys
    texts     the JSON files, rank 0's
    """

    final: Path
    peers: Peers
    weights: dict[str, Tensor]
    training: dict[str, Tensor]
    texts: dict[str, bytes]
    split: int
    needed: int = 0

    @property
    def part(self) -> Path:
        return self.final.with_suffix(".part")

    def run(self) -> None:
        """Write, sync, seal, rename. Raises CheckpointError on every rank alike; older checkpoints are then intact."""
        doing = f"write the checkpoint {self.final}"
        try:
            self.needed = sum(self._together(doing, self._size))
            self._first(doing, self._prepare)
            written = self._together(doing, self._files)
            digests = {name: digest for files in written for name, digest in files.items()}
            self._first(doing, lambda: self._commit(digests))
        except CheckpointError:
            if self.peers.rank == 0 and self.part.is_dir() and faults(self.part):
                shutil.rmtree(self.part, ignore_errors=True)
            raise

    def prune(self, keep: int, keep_every: int) -> None:
        """Of earlier steps remove all but `keep` - 1 and those divisible by `keep_every`, not the one just written."""
        self._first(f"remove checkpoints older than {self.final}", lambda: self._prune(keep, keep_every))

    def _size(self) -> int:
        return size_of(self.weights) + size_of(self.training) + sum(len(text) for text in self.texts.values())

    def _prepare(self) -> None:
        """Make room."""
        self.part.parent.mkdir(parents=True, exist_ok=True)
        tidy(self.part.parent)
        free = shutil.disk_usage(self.part.parent).free
        if free < self.needed:
            raise CheckpointError(f"the disk is full; it takes {self.needed:,} bytes, {free:,} were free: free "
                                  f"{self.needed - free:,} more, or choose another folder")
        self.part.mkdir()

    def _files(self) -> dict[str, Digest]:
        rank, part = self.peers.rank, self.part
        if not part.is_dir():
            raise CheckpointError(f"rank {rank} does not see {part}; use a disk that all ranks share")
        digests = {name: write_file(part / name, [text]) for name, text in self.texts.items()}
        if self.training:
            name = f"training-{rank:05d}.safetensors"
            digests[name] = write_tensors(part / name, self.training)
        return digests if rank else digests | write_weights(part, self.weights, self.split)

    def _commit(self, digests: dict[str, Digest]) -> None:
        write_manifest(self.part, digests)
        commit(self.part)

    def _prune(self, keep: int, keep_every: int) -> None:
        if cut := faults(self.final, every_byte=False):
            raise CheckpointError(cut[0])
        older = [path for path in committed(self.final.parent) if step_of(path) < step_of(self.final)]
        for path in older[keep - 1:]:
            if not keep_every or step_of(path) % keep_every:
                remove(path)

    def _first(self, doing: str, act: Callable[[], object]) -> None:
        """What rank 0 does alone, and all learn the end of."""
        self._together(doing, act if self.peers.rank == 0 else lambda: None)

    def _together(self, doing: str, act: Callable[[], object]) -> list:
        """What `act` gave on every rank; or, where it failed on any, the same CheckpointError on all."""
        value, why, cause = None, None, None
        try:
            value = act()
        except Exception as error:
            why, cause = f"can't {doing}: {self._explained(error)}", error
        try:
            everyone = self.peers.gather((value, why))
        except RuntimeError as error:
            raise CheckpointError(f"can't {doing}: another process is gone") from error
        for _, said in everyone:
            if said:
                raise CheckpointError(said) from cause
        return [value for value, _ in everyone]

    def _explained(self, error: Exception) -> str:
        match error:
            case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG, strerror=said):
                return (f"{said}; it takes {self.needed:,} bytes in all: free some, raise the quota or the limit on "
                        "the size of files (ulimit -f), or choose another folder")
            case OSError(strerror=said) if said:
                where = error.filename or self.part
                return f"{said} ({where}); repair it, make the folder writable, or choose another"
            case _:
                return str(error) or type(error).__name__
