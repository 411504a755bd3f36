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
from collections import defaultdict
from collections.abc import Sequence
from itertools import count, groupby
from pathlib import Path

import numpy as np
import pyarrow as pa

from unimm.disk import fault_of, read_sealed, replace_file
from unimm.errors import UserError
from unimm.sample import Codes, Content, Image, Latents, Level, Part, Sample, Text

LEVEL = ("image", "positions", "depth", "rows", "columns")


class ShardError(UserError):
    """A folder of codes that can't be used or written as asked; the message names the file and the remedy."""


def code_type(size: int) -> np.dtype:
    """The smallest type on disk that holds the ids 0 .. size - 1; that of latents where there are no codes."""
    return np.dtype((np.uint16 if size <= 2**16 else np.uint32) if size else np.float32)


def to_json(sample: Sample) -> str:
    """The parts as messages; successive parts of one speaker share a message."""
    numbers, messages = count(), []
    for role, parts in groupby(sample.parts, lambda part: part.role):
        content = [{"type": "text", "text": part.text, "learn": part.learn} if isinstance(part, Text) else
                   {"type": "image", "index": next(numbers), "learn": part.learn} for part in parts]
        messages.append({"role": role, "content": content})
    return json.dumps({"messages": messages}, ensure_ascii=False, separators=(",", ":"))


def from_json(text: str, images: list[Content], seen: list[bytes] | None = None) -> Sample:
    """The inverse of `to_json`, with the contents of image k at images[k]."""
    parts: list[Part] = []
    for message in json.loads(text)["messages"]:
        for part in message["content"]:
            marks = part["learn"], message["role"]
            parts.append(Text(part["text"], *marks) if part["type"] == "text" else
                         Image(images[k := part["index"]], *marks, seen[k] if seen else None))
    return Sample(tuple(parts))


def write_shard(path: Path, rows: list[tuple[str, Sample]], size: int) -> dict:
    """Write (key, sample with coded images) rows to `path` at once; latents have no `size`.

    Returns the facts for the manifest: file, bytes, sha256, samples, images, codes.
    Raises ShardError if an id is not below `size`, the number of codes the tokenizer has.
    """
    flat = [_flat(key, sample, size) for key, sample in rows]
    level = pa.struct([(name, pa.int32()) for name in LEVEL])
    form = pa.list_(pa.from_numpy_dtype(code_type(size)))
    columns = {
        "key": pa.array([key for key, _ in rows], pa.string()),
        "sample": pa.array([to_json(sample) for _, sample in rows], pa.string()),
        "codes" if size else "latents": pa.array([codes for codes, _ in flat], form),
        "levels": pa.array([levels for _, levels in flat], pa.list_(level)),
    }
    if any(image.seen is not None for _, sample in rows for image in sample.images):
        pictures = [[image.seen for image in sample.images] for _, sample in rows]
        columns["seen"] = pa.array(pictures, pa.large_list(pa.large_binary()))
    table, sink = pa.table(columns), pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return {"file": path.name, **replace_file(path, sink.getvalue()), "samples": len(rows),
            "images": sum(len(sample.images) for _, sample in rows), "codes": sum(len(codes) for codes, _ in flat)}


def _flat(key: str, sample: Sample, size: int) -> tuple[np.ndarray, list[dict[str, int]]]:
    """All codes, or latents, of a sample's images, level by level; and how they divide."""
    runs, levels = [np.zeros(0, np.int32)], []
    for k, image in enumerate(sample.images):
        for level in image.content.levels if isinstance(image.content, Codes) else [image.content]:
            array = level.ids if isinstance(level, Level) else level.array
            runs.append(array.ravel())
            levels.append(dict(zip(LEVEL, (k, *array.shape, *(level.grid or (0, 0))))))
    codes = np.concatenate(runs)
    wrong = codes[(codes < 0) | (codes >= size)] if size else ()
    if len(wrong):
        raise ShardError(f"{key}: code {wrong[0]} is outside the tokenizer's 0 .. {size - 1}")
    return codes.astype(code_type(size)), levels


class Shards(Sequence[Sample]):
    """The samples of an encoded dataset in source order; `shards[i]` reads only what it needs, through memory maps."""

    def __init__(self, folder: Path, manifest: dict):
        self.manifest = manifest
        maps = [pa.memory_map(str(folder / shard["file"])) for shard in manifest["shards"]]
        self.table = pa.concat_tables([pa.ipc.open_file(m).read_all() for m in maps], promote_options="default")
        self._columns = dict(zip(self.table.column_names, self.table.columns))  # to ask the table again is slow

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Sample:
        row = {name: column[index] for name, column in self._columns.items()}
        name, kind = ("codes", Level) if "codes" in row else ("latents", Latents)
        values, at = row[name].values.to_numpy(), 0
        images: dict[int, list[Level | Latents]] = defaultdict(list)
        for level in row["levels"].as_py():
            k, positions, depth, *grid = level.values()
            end = at + positions * depth
            images[k].append(kind(values[at:end].reshape(positions, depth), tuple(grid) if any(grid) else None))
            at = end
        contents = [levels[0] if kind is Latents else Codes(tuple(levels)) for levels in images.values()]
        return from_json(row["sample"].as_py(), contents, row["seen"].as_py() if "seen" in row else None)

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
    if manifest is None:
        what = (f"{folder}/manifest.json was changed or cut short" if (folder / "manifest.json").exists() else
                f"{folder} holds {'an unfinished encode' if (folder / 'plan.json').exists() else 'no encoded dataset'}")
        raise ShardError(f"{what}; {again}")
    if manifest["fingerprint"] != fingerprint:
        raise ShardError(f"{folder} was encoded by tokenizer {manifest['fingerprint']}, this one is {fingerprint}; "
                         "use that tokenizer, or encode the data with this one into a new folder")
    for shard in manifest["shards"]:
        if fault := fault_of(folder / shard["file"], shard):
            raise ShardError(f"{fault}; {again}")
    return Shards(folder, manifest)
