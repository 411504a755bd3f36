"""A write killed at every change that it makes on disk: what was there is still there, what is found is whole."""

import os
import signal
import sys

import pytest
from checkpoint.saves import Odd, forked, same, save

from unimm.checkpoint.read import Pieces, load_weights, read_state, take_up

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir")


def watch(folder, at):
    """Call `at(name of the point, unsynced files)` before each change below `folder`, for the rest of this process."""
    unsynced = set()

    def audit(event, args):
        if event == "open" and str(args[0]).startswith(str(folder)) and args[2] & (os.O_WRONLY | os.O_RDWR):
            at(f"open {os.path.relpath(args[0], folder)}", unsynced)
            unsynced.add(str(args[0]))
        elif event in CHANGES and (not os.path.isabs(args[0]) or str(args[0]).startswith(str(folder))):
            at(f"{event} {os.path.relpath(args[0], folder) if os.path.isabs(args[0]) else args[0]}", unsynced)

    def fsync(handle, real=os.fsync):
        path = os.readlink(f"/proc/self/fd/{handle}")
        at(f"sync {os.path.relpath(path, folder)}", unsynced)
        real(handle)
        unsynced.discard(path)

    sys.addaudithook(audit)
    os.fsync = fsync


def points_of(folder, act) -> list[str]:
    """The name of every change that `act` makes below `folder`."""
    log = folder.with_name("points.txt")

    def note(name, unsynced):
        handle = os.open(log.parent / "points.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, f"{name}\n".encode())
        os.close(handle)

    assert forked(lambda: (watch(folder, note), act())) == 0
    return log.read_text().splitlines()


def dies(folder, act, point: int, power: bool) -> None:
    """Run `act` in a child that is killed before its change number `point`; with `power`, what no sync has made
    safe is cut in half by then."""
    left = [point]

    def at(name, unsynced):
        if left[0] == 0:
            left[0] = -1  # what follows opens files too
            for path in unsynced if power else ():
                os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    assert forked(lambda: (watch(folder, at), act())) == -signal.SIGKILL


def holds(path, step: int, seed: int) -> bool:
    """Whether the checkpoint is that of `step`, weights and training state bit for bit."""
    module, want, read = Odd(99), Odd(seed), Pieces(path)
    load_weights(path, module)
    masters = all(read(name, 0, p.numel())["master"].equal(p.detach().float().flatten())
                  for name, p in want.named_parameters() if p.numel())
    return read_state(path)["step"] == step and same(module, want) and masters


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power cut"])
def test_a_write_killed_at_any_point_leaves_the_old_checkpoint_or_the_new_one(tmp_path, power):
    def write():
        save(folder, 2, keep=1)

    folder = tmp_path / "dry"
    save(folder, 1)
    points = points_of(folder, write)
    assert len(points) >= 20, points
    found = []
    for i, name in enumerate(points):
        folder = tmp_path / f"at-{i}"
        save(folder, 1)
        dies(folder, write, i, power)
        path = take_up(folder, lambda text, name=name: pytest.fail(f"{name}: {text}"))
        found.append(read_state(path)["step"])
        assert holds(path, found[-1], found[-1]), name
        write()
        left = {p.name for p in folder.iterdir()} - {"step-00000002.replaced"}
        assert left == {"step-00000002"}, name
        assert holds(take_up(folder, print), 2, 2), name
    renamed = points.index("os.rename step-00000002.part")
    sealed = points.index("os.rename step-00000002.part/manifest.json.tmp")
    assert set(found[:sealed]) == {1} and set(found[renamed:]) == {2}


def test_a_step_written_anew_over_the_only_checkpoint_is_never_missing(tmp_path):
    def write():
        save(folder, 1, seed=7, keep=1)

    folder = tmp_path / "dry"
    save(folder, 1)
    points = points_of(folder, write)
    for i, name in enumerate(points):
        folder = tmp_path / f"at-{i}"
        save(folder, 1)
        dies(folder, write, i, False)
        path = take_up(folder, lambda text, name=name: pytest.fail(f"{name}: {text}"))
        assert holds(path, 1, 1) or holds(path, 1, 7), name
    assert holds(path, 1, 7)
