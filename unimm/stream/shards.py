"""A dataset of codes on disk: what `unimm encode` writes once and training reads many times.

    codes/
      codes-00000.arrow   uncompressed Arrow IPC (Feather v2), one record batch, read through a memory map
      codes-00000.json    what the shard holds and its SHA-256; a shard without it is unfinished
      plan.json           what is being encoded, by which tokenizer, in shards of how many source rows
      manifest.json       written last: fingerprint, counts, checksums, skipped inputs

Columns: `key` string; `sample` the parts in the chat form as JSON, images as {"type": "image", "index": k};
`codes` all codes of all images, level by level, as uint16 or uint32, or in its place `latents` as float32; `levels` how
those divide: image k, positions, depth or channels, and rows x columns of the grid (0 x 0: none); `seen`, where images
are read otherwise than they are written, each image as PNG.
`pandas.read_feather` and
`datasets.load_dataset("arrow", data_files=...)` read the files as they are.
"""

import json
from collections.abc import Sequence
from itertools import count, groupby
from pathlib import Path

import numpy as np
import pyarrow as pa

from unimm.disk import fault_of, read_sealed, replace_file
from unimm.errors import UserError
from unimm.sample import Codes, Content, Image, Latents, Level, Part, Role, Sample, Text

LEVEL = ("image", "positions", "depth", "rows", "columns")


class ShardError(UserError):
    """A folder of codes that can't be used or written as asked; the message names the file and the remedy."""


def code_type(size: int) -> np.dtype:
    """The smallest type on disk that holds the ids 0 .. size - 1; that of latents where there are no codes."""
    return np.dtype((np.uint16 if size <= 2**16 else np.uint32) if size else np.float32)


def to_json(sample: Sample) -> str:
    """The parts as messages; successive parts of one speaker share a message."""
    numbers = count()

    def content(part: Part) -> dict:
        what = {"text": part.text} if isinstance(part, Text) else {"index": next(numbers)}
        return {"type": "text" if isinstance(part, Text) else "image", **what, "learn": part.learn}

    messages = [{"role": role, "content": [content(part) for part in parts]}
                for role, parts in groupby(sample.parts, lambda part: part.role)]
    return json.dumps({"messages": messages}, ensure_ascii=False, separators=(",", ":"))


def from_json(text: str, images: list[Content], seen: list[bytes] | None = None) -> Sample:
    """The inverse of `to_json`, with the contents of image k at images[k]."""
    def part(role: Role | None, content: dict) -> Part:
        if content["type"] == "text":
            return Text(content["text"], content["learn"], role)
        k = content["index"]
        return Image(images[k], content["learn"], role, seen[k] if seen else None)

    return Sample(tuple(part(message["role"], content)
                        for message in json.loads(text)["messages"] for content in message["content"]))


def write_shard(path: Path, rows: list[tuple[str, Sample]], size: int) -> dict:
    """Write (key, sample with coded images) rows to `path` at once; latents have no `size`.

    Returns the facts for the manifest: file, bytes, sha256, samples, images, codes.
    Raises ShardError if an id is not below `size`, the number of codes the tokenizer has.
    """
    codes = [_codes(key, sample, size) for key, sample in rows]
    level = pa.struct([(name, pa.int32()) for name in LEVEL])
    columns = {
        "key": pa.array([key for key, _ in rows], pa.string()),
        "sample": pa.array([to_json(sample) for _, sample in rows], pa.string()),
        "codes" if size else "latents": pa.array(codes, pa.list_(pa.from_numpy_dtype(code_type(size)))),
        "levels": pa.array([_levels(sample) for _, sample in rows], pa.list_(level)),
    }
    if any(image.seen is not None for _, sample in rows for image in sample.images):
        pictures = [[image.seen for image in sample.images] for _, sample in rows]
        columns["seen"] = pa.array(pictures, pa.large_list(pa.large_binary()))
    table, sink = pa.table(columns), pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return {"file": path.name, **replace_file(path, sink.getvalue()), "samples": len(rows),
            "images": sum(len(sample.images) for _, sample in rows), "codes": sum(map(len, codes))}


def _codes(key: str, sample: Sample, size: int) -> np.ndarray:
    """All codes, or latents, of a sample's images, level by level."""
    runs = [array.ravel() for image in sample.images for array, _ in _arrays(image.content)]
    codes = np.concatenate(runs) if runs else np.zeros(0, np.int32)
    wrong = codes[(codes < 0) | (codes >= size)] if size else ()
    if len(wrong):
        raise ShardError(f"{key}: code {wrong[0]} is outside the tokenizer's 0 .. {size - 1}")
    return codes.astype(code_type(size))


def _arrays(content: Content) -> list[tuple[np.ndarray, tuple[int, int] | None]]:
    """Each level's (positions, depth or channels), and its grid."""
    if isinstance(content, Latents):
        return [(content.array, content.grid)]
    return [(level.ids, level.grid) for level in content.levels]


def _levels(sample: Sample) -> list[dict[str, int]]:
    return [dict(zip(LEVEL, (k, *array.shape, *(grid or (0, 0)))))
            for k, image in enumerate(sample.images) for array, grid in _arrays(image.content)]


class Shards(Sequence[Sample]):
    """The samples of an encoded dataset in source order; `shards[i]` reads only what it needs, through memory maps."""

    def __init__(self, folder: Path, manifest: dict):
        self.manifest = manifest
        maps = [pa.memory_map(str(folder / shard["file"])) for shard in manifest["shards"]]
        self.table = pa.concat_tables([pa.ipc.open_file(m).read_all() for m in maps], promote_options="default")
        self._columns = {name: self.table.column(name) for name in self.table.column_names}

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Sample:
        row = {name: column[index] for name, column in self._columns.items()}
        kind = Level if "codes" in row else Latents
        values, at = row["codes" if "codes" in row else "latents"].values.to_numpy(), 0
        images: list[list[Level | Latents]] = []
        for level in row["levels"].as_py():
            k, positions, depth, *grid = level.values()
            if k == len(images):
                images.append([])
            end = at + positions * depth
            images[k].append(kind(values[at:end].reshape(positions, depth), tuple(grid) if any(grid) else None))
            at = end
        seen = row["seen"].as_py() if "seen" in row else None
        contents = [levels[0] if kind is Latents else Codes(tuple(levels)) for levels in images]
        return from_json(row["sample"].as_py(), contents, seen)

    def key(self, index: int) -> str:
        """The source's name for sample `index`."""
        return self._columns["key"][index].as_py()


def open_shards(folder: str | Path, fingerprint: str) -> Shards:
    """Open an encoded dataset for the tokenizer with this fingerprint.

    Reads every file once to compare checksums.
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
        if fault := fault_of(folder / shard["file"], shard):
            raise ShardError(f"{fault}; {again}")
    return Shards(folder, manifest)
