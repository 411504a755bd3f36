"""A dataset of codes on disk: what `unimm encode` writes once and training reads many times.

    codes/
      codes-00000.arrow   uncompressed Arrow IPC (Feather v2), one record batch, read through a memory map
      codes-00000.json    what the shard holds and its SHA-256; a shard without it is unfinished
      plan.json           what is being encoded, by which tokenizer, in shards of how many source rows
      manifest.json       written last: fingerprint, counts, checksums, skipped inputs

Columns: `key` string; `sample` the parts in the chat form as JSON, images as {"type": "image", "index": k};
`codes` all codes of all images, level by level, as uint16 or uint32; `levels` how those divide: image k,
positions, depth, and rows x columns of the grid (0 x 0: none); `seen`, where images are read otherwise than they
are written, each image as PNG. `pandas.read_feather` and
`datasets.load_dataset("arrow", data_files=...)` read the files as they are.
"""

import json
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from unimm.disk import file_digest, read_sealed, replace_file
from unimm.errors import UserError
from unimm.sample import Codes, Image, Level, Part, Sample, Text

LEVEL = ("image", "positions", "depth", "rows", "columns")


class ShardError(UserError):
    """A folder of codes that can't be used or written as asked; the message names the file and the remedy."""


def code_type(size: int) -> np.dtype:
    """The smallest type on disk that holds the ids 0 .. size - 1."""
    if not 1 <= size <= 2**31:
        raise ShardError(f"a vocabulary of {size} codes can't be stored; it must be between 1 and 2**31")
    return np.dtype(np.uint16 if size <= 2**16 else np.uint32)


def to_json(sample: Sample) -> str:
    """The parts as messages; successive parts of one speaker share a message."""
    messages: list[dict] = []
    images = 0
    for part in sample.parts:
        if not messages or messages[-1]["role"] != part.role:
            messages.append({"role": part.role, "content": []})
        match part:
            case Text():
                content = {"type": "text", "text": part.text, "learn": part.learn}
            case Image():
                content = {"type": "image", "index": images, "learn": part.learn}
                images += 1
        messages[-1]["content"].append(content)
    return json.dumps({"messages": messages}, ensure_ascii=False, separators=(",", ":"))


def from_json(text: str, images: list[Codes], seen: list[bytes] | None = None) -> Sample:
    """The inverse of `to_json`, with the codes of image k at images[k]."""
    parts: list[Part] = []
    for message in json.loads(text)["messages"]:
        role = message["role"]
        for content in message["content"]:
            if content["type"] == "text":
                parts.append(Text(content["text"], content["learn"], role))
            else:
                k = content["index"]
                parts.append(Image(images[k], content["learn"], role, seen[k] if seen else None))
    return Sample(tuple(parts))


def write_shard(path: Path, rows: list[tuple[str, Sample]], size: int) -> dict:
    """Write (key, sample with coded images) rows to `path` at once.

    Returns the facts for the manifest: file, bytes, sha256, samples, images, codes.
    Raises ShardError if an id is not below `size`, the number of codes the tokenizer has.
    """
    runs: list[np.ndarray] = []
    levels: list[tuple[int, int, int, int, int]] = []
    code_ends, level_ends, images = [0], [0], 0
    for key, sample in rows:
        for k, image in enumerate(sample.images):
            for level in image.content.levels:
                low, high = int(level.ids.min()), int(level.ids.max())
                if low < 0 or high >= size:
                    wrong = low if low < 0 else high
                    raise ShardError(f"{key}: code {wrong} is outside the tokenizer's 0 .. {size - 1}")
                runs.append(level.ids.reshape(-1))
                levels.append((k, *level.ids.shape, *(level.grid or (0, 0))))
        images += len(sample.images)
        code_ends.append(code_ends[-1] + sum(v.ids.size for image in sample.images for v in image.content.levels))
        level_ends.append(len(levels))
    if code_ends[-1] >= 2**31:
        raise ShardError(f"{path.name} would hold {code_ends[-1]} codes; encode with fewer samples per shard")
    codes = np.concatenate(runs).astype(code_type(size)) if runs else np.zeros(0, code_type(size))
    table = np.asarray(levels, np.int32).reshape(-1, len(LEVEL))
    columns = {
        "key": pa.array([key for key, _ in rows], pa.string()),
        "sample": pa.array([to_json(sample) for _, sample in rows], pa.string()),
        "codes": pa.ListArray.from_arrays(pa.array(code_ends, pa.int32()), pa.array(codes)),
        "levels": pa.ListArray.from_arrays(
            pa.array(level_ends, pa.int32()),
            pa.StructArray.from_arrays([pa.array(column) for column in table.T], names=LEVEL),
        ),
    }
    if any(image.seen is not None for _, sample in rows for image in sample.images):
        pictures = [[image.seen for image in sample.images] for _, sample in rows]
        columns["seen"] = pa.array(pictures, pa.large_list(pa.large_binary()))
    batch = pa.RecordBatch.from_pydict(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content = sink.getvalue()
    replace_file(path, content)
    return {"file": path.name, "bytes": content.size, "sha256": file_digest(path),
            "samples": len(rows), "images": images, "codes": code_ends[-1]}


class _Shard:
    """One open file; every column is a view of the memory map."""

    def __init__(self, path: Path):
        with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
            batch = reader.get_batch(0)
        self.keys = _strings(batch.column("key"))
        self.samples = _strings(batch.column("sample"))
        codes, levels = batch.column("codes"), batch.column("levels")
        self.code_ends, self.codes = codes.offsets.to_numpy(), codes.values.to_numpy()
        self.level_ends = levels.offsets.to_numpy()
        self.seen = batch.column("seen") if "seen" in batch.schema.names else None
        self.levels = np.stack([levels.values.field(name).to_numpy() for name in LEVEL], axis=1)  # (levels, 5)

    def key(self, row: int) -> str:
        return _string(self.keys, row)

    def sample(self, row: int) -> Sample:
        images: list[list[Level]] = []
        at = int(self.code_ends[row])
        for k, positions, depth, rows, columns in self.levels[self.level_ends[row] : self.level_ends[row + 1]].tolist():
            if k == len(images):
                images.append([])
            ids = self.codes[at : at + positions * depth].reshape(positions, depth)
            images[k].append(Level(ids, (rows, columns) if rows else None))
            at += positions * depth
        seen = None if self.seen is None else self.seen[row].as_py()
        return from_json(_string(self.samples, row), [Codes(tuple(levels)) for levels in images], seen)


def _strings(column: pa.StringArray) -> tuple[np.ndarray, memoryview]:
    """A string column as (row boundaries, UTF-8 bytes)."""
    _, ends, content = column.buffers()
    return np.frombuffer(ends, np.int32)[: len(column) + 1], memoryview(content or b"")


def _string(column: tuple[np.ndarray, memoryview], row: int) -> str:
    ends, content = column
    return str(content[ends[row] : ends[row + 1]], "utf-8")


class Shards(Sequence[Sample]):
    """The samples of an encoded dataset in source order; `shards[i]` reads only what it needs."""

    def __init__(self, folder: Path, manifest: dict):
        self.folder, self.manifest = folder, manifest
        self._starts = np.cumsum([0] + [shard["samples"] for shard in manifest["shards"]]).tolist()
        self._open: list[_Shard | None] = [None] * len(manifest["shards"])

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Sample:
        shard, row = self._find(index)
        return shard.sample(row)

    def key(self, index: int) -> str:
        """The source's name for sample `index`."""
        shard, row = self._find(index)
        return shard.key(row)

    def _find(self, index: int) -> tuple[_Shard, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = bisect_right(self._starts, index) - 1
        if (shard := self._open[number]) is None:
            path = self.folder / self.manifest["shards"][number]["file"]
            shard = self._open[number] = _Shard(path)
        return shard, index - self._starts[number]


def open_shards(folder: str | Path, fingerprint: str, verify: bool = True) -> Shards:
    """Open an encoded dataset for the tokenizer with this fingerprint.

    `verify` reads every file once to compare checksums; with many processes one of them is enough.
    Raises ShardError where the folder is unfinished, damaged, or written by another tokenizer.
    """
    folder = Path(folder)
    again = "run `unimm encode` again: it keeps what is whole and redoes the rest"
    manifest = read_sealed(folder / "manifest.json")
    if manifest is None and (folder / "manifest.json").exists():
        raise ShardError(f"{folder}/manifest.json was changed or cut short; {again}")
    if manifest is None:
        started = (folder / "plan.json").exists()
        raise ShardError(f"{folder} holds {'an unfinished encode' if started else 'no encoded dataset'}; {again}")
    if manifest["fingerprint"] != fingerprint:
        raise ShardError(f"{folder} was encoded by tokenizer {manifest['fingerprint']}, this one is {fingerprint}; "
                         "use that tokenizer, or encode the data with this one into a new folder")
    for shard in manifest["shards"]:
        if problem := problem_of(folder, shard, verify):
            raise ShardError(f"{problem}; {again}")
    return Shards(folder, manifest)


def problem_of(folder: Path, shard: dict, verify: bool = True) -> str | None:
    """What is wrong with a shard's file, or None."""
    path = folder / shard["file"]
    if not path.exists():
        return f"{path} is missing"
    if path.stat().st_size != shard["bytes"]:
        return f"{path} has {path.stat().st_size} bytes instead of {shard['bytes']}"
    if verify and file_digest(path) != shard["sha256"]:
        return f"{path} was changed: its checksum is not the manifest's"
    return None
