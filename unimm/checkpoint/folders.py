"""Checkpoints in a stage's folder: their manifests, their names, and how these change in one step each.

    step-00001234            a checkpoint
    step-00001234.part       being written; whole if its manifest holds, then only the rename is missing
    step-00001234.gone       being removed
    step-00001234.damaged    set aside by a run that could not continue from it
    step-00001234.replaced   set aside for a newer one of the same step

The manifest holds size and sha256 of every file of the folder, and of itself; written last, it means "whole".
Nothing points at the latest: it is the highest step that verifies.
"""

import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from unimm.disk import Digest, fault_of, read_sealed, sync_folder, write_sealed
from unimm.errors import UserError

NAME = re.compile(r"step-(\d{8,})")
MANIFEST = "manifest.json"


class CheckpointError(UserError):
    """A checkpoint that can't be written, is damaged, or belongs to something else."""


def write_manifest(folder: Path, files: dict[str, Digest]) -> None:
    """Seal a folder whose `files` (paths within it) are all written and synced."""
    write_sealed(folder / MANIFEST, {"files": dict(sorted(files.items()))})


def faults(folder: Path, every_byte: bool = True) -> list[str]:
    """What is wrong with a folder, one line a file; nothing where it is whole. Else only sizes are compared."""
    path = folder / MANIFEST
    files = (read_sealed(path) or {}).get("files")
    if files is None:
        return [f"{path} is damaged: it is no manifest of a checkpoint, or was changed" if path.exists() else
                f"{folder} is no whole checkpoint: it has no {MANIFEST}"]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing leaves the interpreter's lock alone
        found = pool.map(lambda name: fault_of(folder / name, files[name], every_byte), files)
        return [fault for fault in found if fault]


def verify(folder: Path) -> None:
    """Read every byte of a checkpoint against its manifest. Raises CheckpointError naming each faulty file."""
    if found := faults(folder):
        raise CheckpointError("; ".join(found))


def final_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint, also of one being written or set aside."""
    return int(NAME.match(path.name)[1])


def committed(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, newest first."""
    return sorted((p for p in folder.glob("step-*") if NAME.fullmatch(p.name)), key=step_of, reverse=True)


def candidates(folder: Path) -> list[Path]:
    """What may hold a whole checkpoint, newest first: those committed, and those that only miss their rename."""
    parts = [p for p in folder.glob("step-*.part") if NAME.fullmatch(p.stem) and (p / MANIFEST).is_file()]
    return sorted([*committed(folder), *parts], key=lambda p: (step_of(p), p.suffix == ""), reverse=True)


def commit(part: Path) -> Path:
    """Give a whole `.part` its final name; what had that name is set aside. Raises OSError."""
    final = part.with_suffix("")
    if final.exists():
        set_aside(final, "replaced")
    part.rename(final)
    sync_folder(final.parent)
    return final


def remove(path: Path) -> None:
    """Remove a checkpoint so that no half of it is ever taken for one. Raises OSError."""
    gone = path.with_suffix(".gone")
    path.rename(gone)
    shutil.rmtree(gone)


def tidy(folder: Path) -> None:
    """Finish what a kill interrupted: whole `.part`s are committed, others and `.gone`s removed. Raises OSError.

    Only for the process that writes here; to a reader a `.part` is somebody's work under way.
    """
    for path in sorted(folder.glob("step-*.part")):
        if (path / MANIFEST).is_file() and not faults(path):
            commit(path)
        else:
            shutil.rmtree(path)
    for path in folder.glob("step-*.gone"):
        shutil.rmtree(path)


def set_aside(path: Path, why: str = "damaged") -> Path:
    """Rename a checkpoint that is not to be used or overwritten; it is kept as `NAME.damaged`, or as `why` says."""
    aside, n = path.with_name(f"{path.name}.{why}"), 2
    while aside.exists():
        aside, n = path.with_name(f"{path.name}.{why}-{n}"), n + 1
    path.rename(aside)
    return aside
