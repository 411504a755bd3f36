"""Tensors to disk: safetensors files hashed while they are written, large sets split with transformers' index.

They are read by `unimm.weights.open_weights`.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from unimm.checkpoint.manifest import CheckpointError
from unimm.disk import Digest, write_file
from unimm.weights import DTYPES, INDEX, WEIGHTS, Stored

SPLIT = 5_000_000_000  # bytes of weights in one file, as transformers wrote them for years
CHUNK = 1 << 24


def size_of(tensors: Mapping[str, Tensor | Stored]) -> int:
    """Bytes that they take on disk, but for a few of header."""
    return sum(t.nbytes for t in tensors.values())


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Digest:
    """Write one safetensors file and sync it. Raises OSError; CheckpointError for a type that has no name there.

    Not `safetensors.torch.save_file`: that leaves nothing to hash but the file, read again from the disk.
    """
    return write_file(path, _safetensors(tensors))


def write_weights(folder: Path, tensors: Mapping[str, Tensor | Stored], limit: int = SPLIT, first: str = WEIGHTS,
                  told: Callable[[int], object] = lambda size: None) -> dict[str, Digest]:
    """Write a model's weights as one file, `first`, or as several of at most `limit` bytes with an index.

    A larger tensor has a file of its own. What is stored elsewhere is read a file at a time; `told` hears the bytes of
    each that was written.
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    cut = split_state_dict_into_shards_factory(
        tensors, get_storage_size=lambda t: t.nbytes, max_shard_size=limit,
        filename_pattern=first.removesuffix(".safetensors") + "{suffix}.safetensors")
    digests = {}
    for file, names in cut.filename_to_tensors.items():
        these = {name: tensors[name] for name in names}
        digests[file] = write_tensors(folder / file, {name: t.read() if isinstance(t, Stored) else t
                                                      for name, t in these.items()})
        told(size_of(these))
    if cut.is_sharded:
        index = {"metadata": cut.metadata, "weight_map": cut.tensor_to_filename}
        digests[INDEX] = write_file(folder / INDEX, [json.dumps(index, indent=1).encode()])
    return digests


def untied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state without the names whose very tensor an earlier name already has (tied weights)."""
    seen, kept = set(), {}
    for name, t in state.items():
        place = (t.data_ptr(), t.dtype, t.shape, t.stride())
        if not t.numel() or place not in seen:
            kept[name] = t
        seen.add(place)
    return kept


def _safetensors(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """A safetensors file, piece by piece: length of the header, header, tensors with the widest types first."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, t in ordered:
        if t.dtype not in DTYPES:
            raise CheckpointError(f"can't save {name}: safetensors has no name for {t.dtype}")
        end = at + t.nbytes
        header[name] = {"dtype": DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that every tensor lies at a multiple of its own width
    yield len(text).to_bytes(8, "little") + text
    for _, t in ordered:
        yield from _bytes(t)


def _bytes(t: Tensor) -> Iterable[memoryview]:
    whole = memoryview(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return (whole[at:at + CHUNK] for at in range(0, len(whole), CHUNK))
