"""Checkpoints with flipped bits and missing ends, and disks that can't be written."""

import random
import resource
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch

from tools.faults.kills import points
from tools.faults.rank import SAVE_EVERY, STAGE, STEPS, Kind, Rank
from tools.faults.runs import Fault, Lab, Row, alike, pool
from unimm.checkpoint.folders import faults, final_of
from unimm.checkpoint.read import take_up
from unimm.status import BAD_INPUT, read_status

OLD, NEW = SAVE_EVERY, 2 * SAVE_EVERY
ON = Kind(zero=3, stage={"keep": 2})


def damages(lab: Lab, count: int, width: int, resumed: int = 10) -> Row:
    """Bits flipped and ends cut off all over the newest checkpoint of a killed run; `resumed` of them then train on."""
    start = lab.folder / "two checkpoints"
    lab.undisturbed(ON)
    lab.started(ON, start, NEW)
    if faults(final_of(start / STAGE, OLD)) or faults(final_of(start / STAGE, NEW)):
        raise Fault("the checkpoints to be damaged are not whole")
    each = -(-count // 10)
    found = pool([lambda n=n: damaged(lab, start, range(n, min(n + each, count)), n // each < resumed)
                  for n in range(0, count, each)], lab.folder / "damages", width)
    wrong = [str(one) for one in found if isinstance(one, Fault)]
    files = Counter(name for one in found if not isinstance(one, Fault) for name in one)
    told = ", ".join(f"{name} {n}" for name, n in sorted(files.items()))
    return Row(f"bit flips and truncations of a checkpoint, {count} places",
               f"{count} detected, 0 loaded; the previous valid one used",
               f"{sum(files.values())} detected and the older one used ({told}); {min(resumed, len(found))} trained on "
               "to the undisturbed end" + (f"; first: {wrong[0]}" if wrong else ""),
               not wrong and sum(files.values()) == count)


def damaged(lab: Lab, start: Path, seeds: range, resumes: bool) -> list[str]:
    """Names of the files that were damaged, one a seed. Raises Fault where one was not noticed."""
    names = []
    for seed in seeds:
        draw, folder = random.Random(seed), lab.folder / f"damage-{seed}"
        shutil.copytree(start, folder)
        newest = final_of(folder / STAGE, NEW)
        files = sorted(path for path in newest.iterdir() if path.is_file())
        file = files[seed % len(files)]
        content = bytearray(file.read_bytes())
        if seed // len(files) % 2:
            del content[draw.randrange(len(content)):]
        else:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        said: list[str] = []
        used = folder if resumes and seed == seeds[0] else None
        if used:
            lab.train(folder, ON)
            alike(lab.undisturbed(ON), folder)
            said = [log.read_text() for log in lab.logs(folder)]
        elif take_up(folder / STAGE, said.append) != final_of(folder / STAGE, OLD):
            raise Fault(f"damage {seed} of {file.name} was loaded")
        if file.name not in "".join(said) or not newest.with_name(f"{newest.name}.damaged").is_dir():
            raise Fault(f"damage {seed} of {file.name} was not reported and set aside")
        names.append(file.name)
        shutil.rmtree(folder)
    return names


@contextmanager
def small_disk(folder: Path, size: int):
    """A file system of so many bytes at `folder`; a function that gives it another size."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield lambda more: subprocess.run(["mount", "-o", f"remount,size={more}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def may_mount(folder: Path) -> bool:
    """Whether this process may make file systems: root outside of most containers."""
    try:
        with small_disk(folder, 1 << 20):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def _usage(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


def _fill(folder: Path) -> None:
    with open(folder / "ballast", "wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 4096):
                pass
        except OSError:
            pass


def stops_cleanly(lab: Lab, folder: Path, trouble: Callable[[int, Rank], None], words: tuple[str, ...],
                  step: int | None = OLD) -> None:
    """A run under that trouble ends with code 2 and `words` in its last line; the checkpoint of `step` is whole."""
    attempt = lab.start(folder, ON, trouble)
    codes = attempt.end()
    # The rank whose disk it is says why; another one may lose its connection to it before it hears of that.
    told = [log.read_text() for code, log in zip(codes, attempt.logs, strict=True) if code == BAD_INPUT]
    if not told or 0 in codes:
        raise Fault(f"{folder.name}: exit codes {codes} ({attempt.said()})")
    if missing := [word for word in words if word not in told[0].splitlines()[-1]]:
        raise Fault(f"{folder.name}: {' and '.join(missing)} not said ({attempt.said()})")
    if step and faults(final_of(folder / STAGE, step)):
        raise Fault(f"{folder.name}: the last checkpoint is damaged")


def _goes_on(lab: Lab, folder: Path) -> None:
    lab.train(folder, ON)
    alike(lab.undisturbed(ON), folder)


def no_room_for_the_next(lab: Lab) -> None:
    """The disk has room for one and a half checkpoints."""
    folder = lab.folder / "disk-small"
    size = _usage(final_of(lab.undisturbed(ON) / STAGE, STEPS))
    with small_disk(folder, size * 3 // 2 + (96 << 10)) as resize:
        stops_cleanly(lab, folder, lambda rank, hooks: None,
                      (str(final_of(folder / STAGE, NEW)), "it takes ", " bytes", "were free"))
        resize(size * 8)
        _goes_on(lab, folder)


def filled_while_writing(lab: Lab) -> None:
    """Somebody else fills the disk when the second checkpoint is half written."""
    folder = lab.folder / "disk-filled"

    def filling(rank: int, hooks: Rank) -> None:
        if rank == 1:
            points(folder / STAGE, lambda name: _fill(folder) if name.startswith(f"open step-{NEW:08d}") else None)

    with small_disk(folder, 16 << 20):
        stops_cleanly(lab, folder, filling, (str(final_of(folder / STAGE, NEW)), "No space left", " bytes"))
        (folder / "ballast").unlink()
        if (folder / STAGE / f"step-{NEW:08d}.part").exists():
            raise Fault("what was half written takes up the disk")
        _goes_on(lab, folder)


def filled_between(lab: Lab) -> None:
    """The disk is full when a line of metrics is due."""
    folder = lab.folder / "disk-between"

    def filling(rank: int, hooks: Rank) -> None:
        def at(n: int) -> None:
            if n == SAVE_EVERY + 1:
                while not final_of(folder / STAGE, OLD).is_dir():
                    time.sleep(0.01)
                _fill(folder)

        hooks.before_batch = at if rank == 0 else hooks.before_batch

    with small_disk(folder, 16 << 20):
        stops_cleanly(lab, folder, filling, (str(folder / STAGE), "No space left"))
        (folder / "ballast").unlink()
        _goes_on(lab, folder)


def file_limit(lab: Lab) -> None:
    """A limit on the size of files (ulimit -f), which is what a process without a disk of its own can be given."""
    folder = lab.folder / "disk-limit"

    def limiting(rank: int, hooks: Rank) -> None:
        def at(name: str) -> None:
            if name.startswith(f"open step-{NEW:08d}"):
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

        if rank == 0:
            points(folder / STAGE, at)

    stops_cleanly(lab, folder, limiting, (str(final_of(folder / STAGE, NEW)), "too large", " bytes"))
    _goes_on(lab, folder)


def _read_only(folder: Path) -> None:
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)


def read_only(lab: Lab, during: bool) -> None:
    """The stage's folder is read-only at the start, or becomes so while the run is under way."""
    folder = lab.folder / f"disk-read-only-{during}"
    if during:
        (folder / STAGE).mkdir(parents=True)
    else:
        lab.started(ON, folder)
        _read_only(folder / STAGE)

    def forbidding(rank: int, hooks: Rank) -> None:
        def at(n: int) -> None:
            if n == SAVE_EVERY + 1:
                while not final_of(folder / STAGE, OLD).is_dir():
                    time.sleep(0.01)
                _read_only(folder / STAGE)

        hooks.before_batch = at if rank == 0 and during else hooks.before_batch

    try:
        stops_cleanly(lab, folder, forbidding, (str(folder / STAGE), "Read-only file system"))
    finally:
        subprocess.run(["umount", "-l", str(folder / STAGE)], check=True)
    if read_status(folder)["state"] != "failed":
        raise Fault(f"{folder.name}: status {read_status(folder)}")
    _goes_on(lab, folder)


def disks(lab: Lab, width: int, count: int | None = None) -> Row:
    lab.undisturbed(ON)
    acts = {"a limit on file size (ulimit -f)": lambda: file_limit(lab)}
    if may_mount(lab.folder / "try"):
        acts |= {"no room for the next checkpoint": lambda: no_room_for_the_next(lab),
                 "filled while writing": lambda: filled_while_writing(lab),
                 "filled between checkpoints": lambda: filled_between(lab),
                 "read-only from the start": lambda: read_only(lab, False),
                 "read-only on the way": lambda: read_only(lab, True)}
    acts = dict(list(acts.items())[:count])
    found = pool(acts.values(), lab.folder / "disks", width)
    wrong = [f"{name}: {each}" for name, each in zip(acts, found, strict=True) if isinstance(each, Fault)]
    return Row(f"disk full while saving, read-only output: {', '.join(acts)}",
               "stops cleanly with the path and the bytes needed; last checkpoint intact; goes on when there is room",
               f"{len(acts) - len(wrong)} of {len(acts)}: exit code 2, a line with the path, then the undisturbed end"
               + (f"; wrong: {'; '.join(wrong)}" if wrong else ""), not wrong)


def same_weights(one: Path, two: Path) -> bool:
    from safetensors.torch import load_file

    a, b = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())
