"""Writing what was converted: planned from headers, one file in memory at a time, aside, then renamed."""

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from pydantic import ByteSize, TypeAdapter, ValidationError
from tqdm import tqdm

from unimm.convert.source import ConvertError
from unimm.disk import Digest, new_folder
from unimm.weights import SPLIT, WEIGHTS, Stored, size_of, write_weights

ALL = 1 << 62
"""A limit for one file that holds everything."""
SMALL = 10**8
"""Bytes of everything but weights, and more."""


def bytes_of(size: str) -> int:
    """"5GB" -> 5,000,000,000. Raises ConvertError."""
    try:
        count = int(TypeAdapter(ByteSize).validate_python(size))
    except ValidationError:
        count = 0
    if count <= 0:
        raise ConvertError(f"--split is {size!r}; give a size such as 5GB or 500MB")
    return count


def aside(out: Path, source: Path, needed: int) -> AbstractContextManager[Path]:
    """`new_folder` for what is made of `source`. Raises ConvertError where the disk lacks `needed` bytes, too."""
    target, inside = out.resolve(), source.resolve()
    if inside in target.parents or target in inside.parents or target == inside:
        raise ConvertError(f"{out} and its source {source} lie one inside the other; choose another folder")
    disk = next(folder for folder in target.parents if folder.is_dir())
    free, needed = shutil.disk_usage(disk).free, needed + SMALL
    if free < needed:
        raise ConvertError(f"{out} needs {needed / 1e9:,.1f} GB, but {disk} has {free / 1e9:,.1f} GB free; free the "
                           "disk or choose another folder")
    return new_folder(out, ConvertError, "conversion")


def write_stored(folder: Path, tensors: Mapping[str, Stored], limit: int = SPLIT,
                 first: str = WEIGHTS) -> dict[str, Digest]:
    """`write_weights` of what is stored elsewhere: says on stderr how far it is, at most every few seconds."""
    with tqdm(desc=f"convert {first}", total=size_of(tensors), unit="B", unit_scale=True, mininterval=5) as bar:
        return write_weights(folder, tensors, limit, first, bar.update)
