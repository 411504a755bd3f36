"""Pixels to codes, once: items -> images in batches -> tokenizer -> shards.

A shard is a fixed range of source rows and is encoded on its own, so its bytes don't depend on which
process wrote it, or on how often the work was killed and started again. Processes share nothing but
the folder: shard n belongs to rank n % world, and whoever finds every shard done writes the manifest.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from unimm.disk import fault_of, read_sealed, write_sealed, writing
from unimm.sample import Codes, Content, Image, Part, Sample
from unimm.stream.shards import ShardError, write_shard
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
    """How many codes the tokenizer has, at its largest level: ids are 0 .. size - 1. 0: it yields latents."""
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


def encode(items: Iterable[Item], to_codes: Callable[[list[np.ndarray]], list[Content]], plan: Plan, folder: str | Path,
           *, prepare: Callable[[np.ndarray], np.ndarray], see: Callable[[np.ndarray], bytes] | None = None,
           rank: int = 0, world: int = 1) -> dict | None:
    """Encode a source's items into `folder`; start it again after any interruption and it goes on.

    Every rank passes over all items; those of shards that are done, or another rank's, are not decoded.
    `to_codes` takes what `prepare` makes of each picture. What `see` makes of it is kept beside the codes.
    Bad items are skipped and listed with their reasons. Returns the manifest, or None while other ranks are
    still at work. A folder that is already finished and whole is returned as it is. Raises ShardError for
    another plan's folder, a source that changed under a half-done encode, or a source without a single usable
    row; DiskError for a folder that can't be written.
    """
    folder, shards = Path(folder), 0
    if finished := _begin(folder, plan, rank):
        return finished
    for shards, (_, rows) in enumerate(groupby(enumerate(items), lambda row: row[0] // plan.rows), 1):
        keys, path = hashlib.sha256(), folder / f"codes-{shards - 1:05d}.arrow"
        rows, side = _noted(rows, keys), path.with_suffix(".json")
        mine = (shards - 1) % world == rank
        kept = read_sealed(side) if mine else None
        if mine and (kept is None or fault_of(path, kept)):
            samples, problems = _encode_rows(rows, to_codes, prepare, see, plan.batch)
            facts = {"rows": len(samples) + len(problems), "keys": keys.hexdigest(), "skipped": len(problems),
                     "problems": problems[:LISTED]}
            write_sealed(side, write_shard(path, samples, plan.size) | facts)  # says: it is done
            continue
        for _ in rows:  # passes over them; nothing is decoded
            pass
        if kept and keys.hexdigest() != kept["keys"]:
            raise ShardError(f"the source changed since {path} was encoded; delete {folder} and encode again")
    return _finish(folder, plan, shards, rank)


def _begin(folder: Path, plan: Plan, rank: int) -> dict | None:
    """Claim the folder for the plan; its manifest if everything in it is finished and whole."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if (old := read_sealed(folder / "plan.json")) is None:
        write_sealed(folder / "plan.json", plan.facts(), f"{rank}.")
    elif old != plan.facts():
        names = [name for name, value in plan.facts().items() if old.get(name) != value]
        raise ShardError(f"{folder} holds codes made with other settings ({', '.join(names)}); choose another folder")
    manifest = read_sealed(folder / "manifest.json")
    faulty = manifest is None or any(fault_of(folder / shard["file"], shard) for shard in manifest["shards"])
    return None if faulty else manifest


def _noted(rows: Iterator[tuple[int, Item]], keys) -> Iterator[Item]:
    """The rows as they come, their keys hashed."""
    for _, item in rows:
        keys.update(item.key.encode() + b"\n")
        yield item


def _encode_rows(rows: Iterator[Item], to_codes, prepare, see, batch: int):
    """(key, sample with coded images) of the usable rows in order, and {key, why} of the others.

    Pixels are let go batch by batch: a shard's worth of them would not fit into memory.
    """
    kept: list[tuple[str, list[Part]]] = []
    waiting: list[tuple[list[Part], int, np.ndarray]] = []  # whose codes go where
    problems: list[dict[str, str]] = []

    def flush(least: int) -> None:
        while len(waiting) >= least:
            now, waiting[:] = waiting[:batch], waiting[batch:]
            for (parts, n, _), codes in zip(now, to_codes([pixels for *_, pixels in now]), strict=True):
                parts[n] = replace(parts[n], content=codes)

    for item in rows:
        found = item.read()
        if isinstance(found, str):
            problems.append({"key": item.key, "why": found})
            continue
        parts = list(found.parts)
        kept.append((item.key, parts))
        for n, part in enumerate(parts):
            if isinstance(part, Image):
                array = part.content.array
                waiting.append((parts, n, prepare(array)))
                parts[n] = replace(part, content=Codes(()), seen=see(array) if see else None)
        flush(batch)
    flush(1)
    return [(key, Sample(tuple(parts))) for key, parts in kept], problems


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
