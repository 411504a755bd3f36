"""Files that appear whole or not at all, and small JSON files that notice damage."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

from unimm.errors import UserError


class DiskError(UserError):
    """A file or folder that can't be written; the message names it, the system's reason and the remedy."""


@contextmanager
def writing(path: Path):
    """Say in one line which path could not be written, and why."""
    try:
        yield
    except OSError as error:
        raise DiskError(f"can't write {path}: {error.strerror}; free the disk or choose another folder") from None


class Digest(TypedDict):
    """What a file must be: its size and its SHA-256, hexadecimal."""

    bytes: int
    sha256: str


def write_file(path: Path, chunks: Iterable) -> Digest:
    """Write `chunks` (bytes or buffers) one after another and sync them; what was written.

    The digest is that of the memory, so it also covers the way to the disk. Raises OSError.
    """
    digest, size = hashlib.sha256(), 0
    with open(path, "wb") as file:
        for chunk in chunks:
            digest.update(chunk)
            size += file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def replace_file(path: Path, content, aside: str = "") -> Digest:
    """Write `content` (bytes or a buffer) aside, then put it at `path` in one step that survives a power cut.

    Processes that may write one path at the same time need an `aside` of their own, such as their rank.
    Its name is the same after a restart, so that no leftovers gather.
    """
    draft = path.with_name(f"{path.name}.{aside}tmp")
    with writing(path):
        digest = write_file(draft, [content])
        os.replace(draft, path)
        sync_folder(path.parent)
    return digest


def copy_file(source: Path, target: Path) -> Digest:
    """Copy and sync a file of any size; what was written. Raises OSError."""
    with open(source, "rb") as file:
        return write_file(target, iter(lambda: file.read(1 << 24), b""))


def sync_folder(folder: Path) -> None:
    """Make the names in a folder (files created, renamed, removed) survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fault_of(path: Path, wanted: Digest, every_byte: bool = True) -> str | None:
    """What is wrong with a file, or None; without `every_byte` only sizes are compared."""
    try:
        size = path.stat().st_size
        if size != wanted["bytes"]:
            return f"{path} is damaged: it has {size:,} bytes, not {wanted['bytes']:,}"
        if every_byte:
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != wanted["sha256"]:
                    return f"{path} is damaged: its checksum differs"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"can't read {path}: {error.strerror}"
    return None


def write_sealed(path: Path, facts: dict, aside: str = "") -> None:
    """Write `facts` with a hash of themselves under "seal"."""
    text = json.dumps(facts | {"seal": _seal(facts)}, indent=1, ensure_ascii=False)
    replace_file(path, text.encode(), aside)


def read_sealed(path: Path) -> dict | None:
    """The facts without their seal; None if the file is missing, cut short or changed."""
    try:
        facts = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    whole = isinstance(facts, dict) and facts.pop("seal", None) == _seal(facts)
    return facts if whole else None


def _seal(facts: dict) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@contextmanager
def new_folder(out: Path, refusal: type[UserError], work: str) -> Iterator[Path]:
    """A folder to write into, which becomes `out` at the end; where anything fails, nothing of it stays.

    Raises `refusal` where `out` is there and not empty, or what an interrupted `work` left is; DiskError.
    """
    part = out.with_name(out.name + ".part")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise refusal(f"{out} is there already; choose another folder, or delete it")
    if part.exists():
        raise refusal(f"{part} is in the way, perhaps left by an interrupted {work}; delete it")
    with writing(out):
        part.mkdir(parents=True)
        try:
            yield part
            sync_folder(part)
            if out.exists():
                out.rmdir()
            part.rename(out)
            sync_folder(out.resolve().parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)
