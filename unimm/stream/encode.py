"""Pixels to codes, once: items -> images in batches -> tokenizer -> shards.

A shard is a fixed range of source rows and is encoded on its own, so its bytes don't depend on which
process wrote it, or on how often the work was killed and started again. Processes share nothing but
the folder: shard n belongs to rank n % world, and whoever finds every shard done writes the manifest.
"""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np

from unimm.disk import read_sealed, write_sealed, writing
from unimm.resize import fit
from unimm.sample import Codes, Image, Part, Sample
from unimm.stream.shards import ShardError, problem_of, write_shard
from unimm.stream.sources import Item

FORMAT = 1
LISTED = 100
"""Skipped inputs listed per shard and in the manifest; all are counted."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What becomes of which source. A folder holds the codes of one plan only."""

    source: dict
    """The source's resolved configuration."""
    fingerprint: str
    """The tokenizer's."""
    size: int
    """How many codes the tokenizer has: ids are 0 .. size - 1."""
    pixels: int
    """Height and width the tokenizer takes, or those of its square images where it takes several sizes."""
    seen: tuple = ()
    """How each picture is kept beside its codes, for an encoder that reads it: height and width, colour of the
    padding. Empty: not at all."""
    rows: int = 4096
    """Source rows per shard."""
    batch: int = 64
    """Images per call of the tokenizer; part of the plan, as float sums differ between batch sizes."""

    def facts(self) -> dict:
        return {"format": FORMAT, **vars(self), "seen": [*self.seen]}


@dataclass(frozen=True)
class Progress:
    """Where this process is: source rows seen of `total` (None: unknown), and what it encoded since it started."""

    rows: int
    total: int | None
    samples: int
    images: int
    skipped: int
    seconds: float
    rate: float
    """Source rows per second since the first that was encoded, other ranks' rows included."""
    eta: float | None
    """Seconds left; None where the total is unknown, or nothing was encoded yet."""


@dataclass
class _Tally:
    """Counts behind `Progress`."""

    report: Callable[[Progress], None]
    total: int | None
    rows: int = 0
    samples: int = 0
    images: int = 0
    skipped: int = 0
    start: float | None = None
    passed: int = 0
    """Rows that were done before the clock started: they would flatter the rate."""

    def begin(self) -> None:
        """Start the clock at the first row that is encoded."""
        if self.start is None:
            self.start, self.passed = time.monotonic(), self.rows

    def send(self) -> None:
        seconds = time.monotonic() - self.start if self.start is not None else 0.0
        rate = (self.rows - self.passed) / max(seconds, 1e-9)
        eta = max(self.total - self.rows, 0) / rate if self.total is not None and rate else None
        self.report(Progress(self.rows, self.total, self.samples, self.images, self.skipped, seconds, rate, eta))


def encode(items: Iterable[Item], to_codes: Callable[[list[np.ndarray]], list[Codes]], plan: Plan, folder: str | Path,
           *, prepare: Callable[[np.ndarray], np.ndarray] | None = None,
           see: Callable[[np.ndarray], bytes] | None = None, rank: int = 0, world: int = 1, total: int | None = None,
           progress: Callable[[Progress], None] = lambda _: None) -> dict | None:
    """Encode a source's items into `folder`; start it again after any interruption and it goes on.

    Every rank passes over all items; those of shards that are done, or another rank's, are not decoded.
    `to_codes` takes what `prepare` makes of each picture; without one, uint8 (pixels, pixels, 3). What `see` makes of
    it is kept beside the codes.
    Bad items are skipped and listed with their reasons. Returns the manifest, or None while other ranks are
    still at work. A folder that is already finished and whole is returned as it is. Raises ShardError for
    another plan's folder, a source that changed under a half-done encode, or a source without a single usable
    row; DiskError for a folder that can't be written.
    """
    folder = Path(folder)
    if finished := _begin(folder, plan, rank):
        return finished
    tally = _Tally(progress, total)
    iterator, number = iter(items), 0
    while (first := next(iterator, None)) is not None:
        keys = hashlib.sha256()
        rows = _noted(chain([first], islice(iterator, plan.rows - 1)), keys, tally)
        path = folder / f"codes-{number:05d}.arrow"
        mine = number % world == rank
        kept = _kept(path) if mine else None
        if mine and kept is None:
            _write(path, rows, keys, to_codes, prepare or partial(fit, size=plan.pixels), see, plan, tally)
        else:
            deque(rows, maxlen=0)  # passes over them; nothing is decoded
        if kept is not None and keys.hexdigest() != kept["keys"]:
            raise ShardError(f"the source changed since {path} was encoded; delete {folder} and encode again")
        tally.send()
        number += 1
    return _finish(folder, plan, number, rank)


def _kept(path: Path) -> dict | None:
    """The facts of a shard that an earlier run finished, if it is whole."""
    side = read_sealed(path.with_suffix(".json"))
    return side if side and not problem_of(path.parent, side) else None


def _begin(folder: Path, plan: Plan, rank: int) -> dict | None:
    """Claim the folder for the plan; its manifest if everything in it is finished and whole."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    old = read_sealed(folder / "plan.json")
    if old is not None and old != plan.facts():
        names = [name for name, value in plan.facts().items() if old.get(name) != value]
        raise ShardError(f"{folder} holds codes made with other settings ({', '.join(names)}); choose another folder")
    if old is None:
        write_sealed(folder / "plan.json", plan.facts(), f"{rank}.")
    manifest = read_sealed(folder / "manifest.json")
    if manifest is None or any(problem_of(folder, shard) for shard in manifest["shards"]):
        return None
    return manifest


def _noted(rows: Iterator[Item], keys, tally: _Tally) -> Iterator[Item]:
    """The rows as they come, their keys hashed and their number counted."""
    for item in rows:
        keys.update(item.key.encode() + b"\n")
        tally.rows += 1
        yield item


def _write(path: Path, rows: Iterator[Item], keys, to_codes, prepare, see, plan: Plan, tally: _Tally) -> None:
    """Encode one shard; its side file, written last, says that it is done."""
    tally.begin()
    drafts, codes, skipped, problems = _encode_rows(rows, to_codes, prepare, see, plan, tally)
    facts = write_shard(path, _with_codes(drafts, codes), plan.size)
    write_sealed(path.with_suffix(".json"), facts | {
        "rows": len(drafts) + skipped, "keys": keys.hexdigest(), "skipped": skipped, "problems": problems,
    })  # fmt: skip


def _encode_rows(rows: Iterator[Item], to_codes, prepare, see, plan: Plan, tally: _Tally):
    """(key and sample with images still open, in order), (the images' codes, in order), skipped, problems.

    Pixels are let go batch by batch: a shard's worth of them would not fit into memory.
    """
    drafts: list[tuple[str, Sample]] = []
    codes: list[Codes] = []
    waiting: list[np.ndarray] = []
    skipped, problems = 0, []

    def flush(count: int) -> None:
        codes.extend(to_codes(waiting[:count]))
        del waiting[:count]
        tally.images += count
        tally.send()

    for item in rows:
        if item.sample is None:
            skipped += 1
            tally.skipped += 1
            problems += [{"key": item.key, "why": item.problem}] if len(problems) < LISTED else []
            continue
        waiting += [prepare(image.content.array) for image in item.sample.images]
        drafts.append((item.key, _without_pixels(item.sample, see)))
        tally.samples += 1
        while len(waiting) >= plan.batch:
            flush(plan.batch)
    if waiting:
        flush(len(waiting))
    return drafts, codes, skipped, problems


_OPEN = Codes(())


def _without_pixels(sample: Sample, see) -> Sample:
    return Sample(tuple(replace(p, content=_OPEN, seen=see(p.content.array) if see else None)
                        if isinstance(p, Image) else p for p in sample.parts))


def _with_codes(drafts: list[tuple[str, Sample]], codes: list[Codes]) -> list[tuple[str, Sample]]:
    """The drafts with their images filled from `codes`, both in order."""
    supply = iter(codes)

    def fill(part: Part) -> Part:
        return replace(part, content=next(supply)) if isinstance(part, Image) else part

    return [(key, Sample(tuple(fill(part) for part in sample.parts))) for key, sample in drafts]


def _finish(folder: Path, plan: Plan, shards: int, rank: int) -> dict | None:
    """Write the manifest once every shard has its side file; the last process to finish always finds them all.

    Two processes may both find them; they write the same bytes, each under one rename.
    """
    sides = [read_sealed(folder / f"codes-{number:05d}.json") for number in range(shards)]
    if any(side is None for side in sides):
        return None
    problems = [problem for side in sides for problem in side["problems"]][:LISTED]
    counts = {name: sum(side[name] for side in sides) for name in ("rows", "samples", "images", "codes", "skipped")}
    if not counts["samples"]:
        first = f"; the first: {problems[0]['why']}" if problems else ""
        raise ShardError(f"the source has no usable row among {counts['rows']}{first}")
    listed = ("file", "bytes", "sha256", "samples", "images", "codes")
    manifest = {**plan.facts(), "finished": True, "counts": counts, "problems": problems,
                "shards": [{name: side[name] for name in listed} for side in sides]}
    write_sealed(folder / "manifest.json", manifest, f"{rank}.")
    return manifest
