"""The manifest: size and sha256 of every file of a folder, and of itself; written last, so that it means "whole"."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from unimm.disk import Digest, file_digest, write_file
from unimm.errors import UserError

MANIFEST = "manifest.json"


class CheckpointError(UserError):
    """A checkpoint that can't be written, is damaged, or belongs to something else."""


def write_manifest(folder: Path, files: dict[str, Digest]) -> None:
    """Seal a folder whose `files` (paths within it) are all written and synced."""
    files = dict(sorted(files.items()))
    write_file(folder / MANIFEST, [json.dumps({"files": files, "sha256": _hash_of(files)}, indent=1).encode()])


def read_manifest(folder: Path) -> dict[str, Digest]:
    """Every file of the folder. Raises CheckpointError where it is missing or damaged."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is no whole checkpoint: it has no {MANIFEST}") from None
    except OSError as error:
        raise CheckpointError(f"can't read {path}: {error.strerror}") from error
    except ValueError:
        raise CheckpointError(f"{path} is damaged: it is no manifest") from None
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        raise CheckpointError(f"{path} is damaged: it is no manifest")
    if content.get("sha256") != _hash_of(content["files"]):
        raise CheckpointError(f"{path} is damaged: its checksum differs")
    return content["files"]


def faults(folder: Path, every_byte: bool = True) -> list[str]:
    """What is wrong with a folder, one line a file; nothing where it is whole. Else only sizes are compared."""
    try:
        files = read_manifest(folder)
    except CheckpointError as error:
        return [str(error)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing leaves the interpreter's lock alone
        found = pool.map(lambda name: _fault(folder / name, files[name], every_byte), files)
        return [fault for fault in found if fault]


def verify(folder: Path) -> None:
    """Read every byte of a checkpoint against its manifest. Raises CheckpointError naming each faulty file."""
    found = faults(folder)
    if found:
        raise CheckpointError("; ".join(found))


def _fault(file: Path, wanted: Digest, every_byte: bool) -> str | None:
    try:
        size = file.stat().st_size
        if size != wanted["bytes"]:
            return f"{file} is damaged: it has {size:,} bytes, not {wanted['bytes']:,}"
        if every_byte and file_digest(file) != wanted["sha256"]:
            return f"{file} is damaged: its checksum differs"
    except FileNotFoundError:
        return f"{file} is missing"
    except OSError as error:
        return f"can't read {file}: {error.strerror}"
    return None


def _hash_of(files: dict) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
