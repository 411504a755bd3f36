"""Writing what was converted: planned from headers, one file in memory at a time, aside, then renamed."""

import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from unimm.checkpoint.tensors import SPLIT, write_split
from unimm.convert.source import ConvertError
from unimm.disk import Digest, new_folder
from unimm.weights import WEIGHTS, Stored

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


def aside(out: Path, source: Path, needed: int) -> AbstractContextManager[Path]:
    """`new_folder` for what is made of `source`. Raises ConvertError where the disk lacks `needed` bytes, too."""
    target, inside = out.resolve(), source.resolve()
    if inside in target.parents or target in inside.parents or target == inside:
        raise ConvertError(f"{out} and its source {source} lie one inside the other; choose another folder")
    disk = next(folder for folder in target.parents if folder.is_dir())
    free = shutil.disk_usage(disk).free
    if free < needed:
        raise ConvertError(f"{out} needs {needed / 1e9:,.1f} GB, but {disk} has {free / 1e9:,.1f} GB free; free the "
                           "disk or choose another folder")
    return new_folder(out, ConvertError, "conversion")


def write_stored(folder: Path, tensors: Mapping[str, Stored], progress: Progress, limit: int = SPLIT,
                 first: str = WEIGHTS) -> dict[str, Digest]:
    """Write tensors under their names, in files of at most `limit` bytes (a larger tensor has its own) with an index.

    No more than one file is in memory.
    """
    return write_split(folder, {name: stored.bytes for name, stored in tensors.items()},
                       lambda name: tensors[name].read(), limit, first, progress.add)


def total(tensors: Iterable[Stored]) -> int:
    return sum(stored.bytes for stored in tensors)
