"""`unimm checkpoint list` and `verify`: what lies in a run's folder, and whether it is whole."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from unimm.checkpoint.folders import MANIFEST, NAME, CheckpointError, faults, step_of
from unimm.checkpoint.read import read_state
from unimm.disk import read_sealed
from unimm.words import columns, size

HEAD = ("stage", "step", "written (UTC)", "size", "ranks", "zero", "state")


def checkpoints_in(path: Path) -> list[Path]:
    """The checkpoint at `path`, or those of a stage's or a run's folder, oldest first; also ones not whole.

    Raises CheckpointError where there is none.
    """
    if NAME.match(path.name) or (path / MANIFEST).is_file():
        found = [path] if path.is_dir() else []
    else:
        both = [*path.glob("step-*"), *path.glob("*/step-*")]
        found = [p for p in both if NAME.match(p.name) and p.is_dir() and p.suffix != ".gone"]
    if not found:
        raise CheckpointError(f"{path}: no checkpoint here; give a checkpoint, or the folder of a run or a stage")
    return sorted(found, key=lambda p: (_state(p)["written"], p.name))


def table(path: Path, every_byte: bool = True) -> list[str]:
    """Lines of a table of all checkpoints in a run's folder; `every_byte` is read, or else only sizes are compared."""
    return columns([HEAD, *(_row(p, every_byte) for p in checkpoints_in(path))], left=(0, 2, 6))


def check_all(path: Path) -> Iterator[str]:
    """A line for each whole checkpoint in `path`; in the end CheckpointError naming every faulty file."""
    wrong = []
    for folder in checkpoints_in(path):
        if folder == path or NAME.fullmatch(folder.name):
            found = faults(folder)
            wrong += found
            if not found:
                files = read_sealed(folder / MANIFEST)["files"]
                yield f"{folder}: whole, {len(files)} files, {size(sum(f['bytes'] for f in files.values()))}"
    if wrong:
        raise CheckpointError("; ".join(wrong))


def _row(path: Path, every_byte: bool) -> tuple[str, ...]:
    state = _state(path)
    total = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    step = step_of(path) if NAME.match(path.name) else state.get("step", 0)
    return (path.parent.name, f"{step:,}", state["written"][:16].replace("T", " "), size(total),
            str(state.get("world", "?")), str(state.get("zero", "?")), _condition(path, every_byte))


def _condition(path: Path, every_byte: bool) -> str:
    if path.suffix == ".part":
        return "unfinished"
    if path.suffix:
        return f"set aside: {path.suffix[1:]}"
    found = [fault.replace(f"{path}/", "") for fault in faults(path, every_byte)]
    return "; ".join(found) or ("whole" if every_byte else "sizes right")


def _state(path: Path) -> dict:
    """What state.json says; where it is missing or damaged, which the manifest tells, only when the folder changed."""
    changed = {"written": datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")}
    try:
        return changed | read_state(path)
    except (OSError, ValueError):
        return changed
