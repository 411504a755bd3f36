"""The manifest: size and sha256 of every file of a folder, and of itself; written last, so that it means "whole"."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from unimm.disk import Digest, fault_of, read_sealed, write_sealed
from unimm.errors import UserError

MANIFEST = "manifest.json"


class CheckpointError(UserError):
    """A checkpoint that can't be written, is damaged, or belongs to something else."""


def write_manifest(folder: Path, files: dict[str, Digest]) -> None:
    """Seal a folder whose `files` (paths within it) are all written and synced."""
    write_sealed(folder / MANIFEST, {"files": dict(sorted(files.items()))})


def read_manifest(folder: Path) -> dict[str, Digest]:
    """Every file of the folder. Raises CheckpointError where it is missing or damaged."""
    path = folder / MANIFEST
    facts = read_sealed(path)
    if facts is None and not path.exists():
        raise CheckpointError(f"{folder} is no whole checkpoint: it has no {MANIFEST}")
    if facts is None or "files" not in facts:
        raise CheckpointError(f"{path} is damaged: it is no manifest of a checkpoint, or was changed")
    return facts["files"]


def faults(folder: Path, every_byte: bool = True) -> list[str]:
    """What is wrong with a folder, one line a file; nothing where it is whole. Else only sizes are compared."""
    try:
        files = read_manifest(folder)
    except CheckpointError as error:
        return [str(error)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing leaves the interpreter's lock alone
        found = pool.map(lambda name: fault_of(folder / name, files[name], every_byte), files)
        return [fault for fault in found if fault]


def verify(folder: Path) -> None:
    """Read every byte of a checkpoint against its manifest. Raises CheckpointError naming each faulty file."""
    if found := faults(folder):
        raise CheckpointError("; ".join(found))
