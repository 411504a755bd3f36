"""Writing what was converted: planned from headers, one file in memory at a time, aside, then renamed."""

import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from unimm.checkpoint.tensors import INDEX, SPLIT, WEIGHTS, write_tensors
from unimm.convert.source import ConvertError, Stored
from unimm.disk import Digest, sync_folder, write_file, writing

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def bytes_of(size: str) -> int:
    """"5GB" -> 5,000,000,000. Raises ConvertError."""
    found = re.fullmatch(r"([\d.]+)\s*(KB|MB|GB|)", size.strip(), re.I)
    count = int(float(found[1]) * UNITS[found[2].upper()]) if found and found[1].count(".") < 2 else 0
    if count <= 0:
        raise ConvertError(f"--split is {size!r}; give a size such as 5GB or 500MB")
    return count


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass
class Progress:
    """Says how far a copy of `total` bytes is, at most every few seconds."""

    what: str
    total: int
    say: Callable[[str], None] = tell
    every: float = 5.0
    done: int = 0
    began: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)

    def add(self, count: int, file: str) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.told >= self.every or self.done == self.total:
            self.told = now
            rate = self.done / max(now - self.began, 1e-9)
            left = time.strftime("%H:%M:%S", time.gmtime((self.total - self.done) / max(rate, 1)))
            self.say(f"{self.what}: {file}, {self.done / 1e9:,.2f} of {self.total / 1e9:,.2f} GB, "
                     f"{rate / 1e6:,.0f} MB/s, {left} left")


@contextmanager
def aside(out: Path, source: Path | None, needed: int) -> Iterator[Path]:
    """A folder to write into, which becomes `out` at the end; where anything fails, nothing of it stays.

    Raises ConvertError where `out` can't be made or the disk lacks `needed` bytes.
    """
    part = out.with_name(out.name + ".part")
    target, inside = out.resolve(), source.resolve() if source else None
    if inside and (inside in target.parents or target in inside.parents or target == inside):
        raise ConvertError(f"{out} and its source {source} lie one inside the other; choose another folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConvertError(f"{out} is there already; choose another folder, or delete it")
    if part.exists():
        raise ConvertError(f"{part} is in the way, perhaps left by an interrupted conversion; delete it")
    disk = next(folder for folder in target.parents if folder.is_dir())
    free = shutil.disk_usage(disk).free
    if free < needed:
        raise ConvertError(f"{out} needs {needed / 1e9:,.1f} GB, but {disk} has {free / 1e9:,.1f} GB free; free the "
                           "disk or choose another folder")
    with writing(out):
        part.mkdir(parents=True)
        try:
            yield part
            if out.exists():
                out.rmdir()
            part.rename(out)
            sync_folder(out.resolve().parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def write_stored(folder: Path, tensors: Mapping[str, Stored], progress: Progress, limit: int = SPLIT,
                 first: str = WEIGHTS) -> dict[str, Digest]:
    """Write tensors under their names, in files of at most `limit` bytes (a larger tensor has its own) with an index.

    No more than one file is in memory.
    """
    sets = _sets(tensors, limit)
    stem = first.removesuffix(".safetensors")
    names = [f"{stem}-{i + 1:05d}-of-{len(sets):05d}.safetensors" for i in range(len(sets))]
    names = [first] if len(sets) == 1 else names
    digests = {}
    for name, some in zip(names, sets):
        digests[name] = write_tensors(folder / name, {n: stored.read() for n, stored in some.items()})
        progress.add(sum(stored.bytes for stored in some.values()), name)
    if len(sets) > 1:
        index = {"metadata": {"total_size": sum(stored.bytes for stored in tensors.values())},
                 "weight_map": {n: name for name, some in zip(names, sets) for n in some}}
        digests[INDEX] = write_file(folder / INDEX, [json.dumps(index, indent=1).encode()])
    return digests


def _sets(tensors: Mapping[str, Stored], limit: int) -> list[dict[str, Stored]]:
    sets, size = [{}], 0
    for name, stored in tensors.items():
        if sets[-1] and size + stored.bytes > limit:
            sets.append({})
            size = 0
        sets[-1][name] = stored
        size += stored.bytes
    return sets


def total(tensors: Iterable[Stored]) -> int:
    return sum(stored.bytes for stored in tensors)
