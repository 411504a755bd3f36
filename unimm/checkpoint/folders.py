"""The names of checkpoints in a stage's folder, and how they change in one step each.

    step-00001234            a checkpoint
    step-00001234.part       being written; whole if its manifest holds, then only the rename is missing
    step-00001234.gone       being removed
    step-00001234.damaged    set aside by a run that could not continue from it
    step-00001234.replaced   set aside for a newer one of the same step

Nothing points at the latest: it is the highest step that verifies.
"""

import re
import shutil
from pathlib import Path

from unimm.checkpoint.manifest import MANIFEST, faults
from unimm.disk import sync_folder

NAME = re.compile(r"step-(\d{8,})")


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
