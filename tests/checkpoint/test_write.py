import errno
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import wait

import pytest
import torch
from checkpoint.saves import Odd, forked, pieces_of, rank_of_two, same, save, together

from unimm.checkpoint import write
from unimm.checkpoint.folders import CheckpointError, verify
from unimm.checkpoint.read import Pieces, load_weights, newest, read_state
from unimm.checkpoint.write import Saver


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte of its own."""
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("mounting a small disk takes root")
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True).returncode:
        pytest.skip("a small disk can't be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


class Gate:
    """The exchange of a lone process whose writer waits at its first exchange until it is let through."""

    def __init__(self):
        self.open = threading.Event()
        self.gather = lambda value: self.open.wait() and [value]


def contents(path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir() if p.name not in ("manifest.json", "state.json")}


def test_what_is_written_behind_is_what_was_there_at_the_call_though_everything_changes_meanwhile(tmp_path):
    want = contents(save(tmp_path / "sync", 1)), contents(save(tmp_path / "sync", 2, seed=5))
    module, pieces, gate = Odd(1), pieces_of(Odd(1)), Gate()
    state, recipe = {"stream": {"i": 1}}, {"name": "toy"}
    saver = Saver(tmp_path / "async", split=150, gather=gate.gather)
    first = saver.save(1, module.state_dict(), pieces, state, recipe)
    module.load_state_dict(Odd(5).state_dict())
    for key, t in pieces_of(Odd(5)).items():
        pieces[key].copy_(t)
    state["stream"]["i"], recipe["name"] = 9, "other"
    assert not first.exists()
    gate.open.set()
    second = saver.save(2, module.state_dict(), pieces, {}, {"name": "toy"})
    assert saver.wait() == second
    module.load_state_dict(Odd(6).state_dict())
    assert (contents(first), contents(second)) == want
    assert read_state(first)["stream"] == {"i": 1}
    verify(first)


ENDING = """
import sys, torch
from pathlib import Path
from unimm.checkpoint.write import Saver
saver = Saver(Path(sys.argv[1]), split=10_000)
saver.save(1, {f"w{i}": torch.full((2_500,), i) for i in range(50)}, {}, {}, {})
raise SystemExit(3)
"""


def test_a_process_that_ends_by_an_exception_still_finishes_its_checkpoint(tmp_path):
    done = subprocess.run([sys.executable, "-c", ENDING, tmp_path])
    assert done.returncode == 3
    assert newest(tmp_path).name == "step-00000001"


def test_a_second_save_waits_for_the_first(tmp_path):
    gate, module, order = Gate(), Odd(), []
    saver = Saver(tmp_path, gather=gate.gather)
    saver.save(1, module.state_dict(), {}, {}, {})

    def second():
        order.append(saver.save(2, module.state_dict(), {}, {}, {}))
        order.append("returned")

    thread = threading.Thread(target=second)
    thread.start()
    thread.join(0.05)  # it can't get on, however long
    assert thread.is_alive() and not order
    gate.open.set()
    thread.join()
    assert saver.wait().name == "step-00000002" and sorted(p.name for p in tmp_path.iterdir()) == [
        "step-00000001", "step-00000002"]


def test_the_newest_and_every_nth_checkpoint_are_kept(tmp_path):
    for step in range(1, 12):
        save(tmp_path, step, keep=2, keep_every=4)
    assert sorted(int(p.name[5:]) for p in tmp_path.iterdir()) == [4, 8, 10, 11]
    save(tmp_path, 12, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000012"]


def test_a_run_taken_back_keeps_what_it_writes_and_leaves_later_steps_alone(tmp_path):
    for step in (5, 6, 2, 3, 4):
        save(tmp_path, step, keep=2)
    assert sorted(int(p.name[5:]) for p in tmp_path.iterdir()) == [3, 4, 5, 6]


def test_saving_again_over_a_step_keeps_what_was_there_aside(tmp_path):
    before = contents(save(tmp_path))
    path = save(tmp_path, seed=8)
    assert contents(tmp_path / "step-00000003.replaced") == before
    other = Odd()
    load_weights(path, other)
    assert same(other, Odd(8))


def test_a_checkpoint_that_the_disk_cannot_hold_is_refused_before_writing_with_the_bytes(small_disk):
    old = save(small_disk / "run", 1)
    saver = Saver(small_disk / "run")
    big = {"w": torch.zeros(400_000)}
    with pytest.raises(CheckpointError, match=r"run/step-00000002: the disk is full; it takes 1,600,\d+ bytes, "
                                              r"[\d,]+ were free: free [\d,]+ more"):
        saver.save(2, big, {}, {}, {})
        saver.wait()
    assert [p.name for p in old.parent.iterdir()] == [old.name] and newest(old.parent) == old
    saver.save(3, {"w": torch.zeros(10)}, {}, {}, {})
    assert saver.wait() == newest(old.parent) != old


def test_a_disk_that_fills_up_while_writing_leaves_the_last_checkpoint_and_no_rest(small_disk, monkeypatch):
    old = save(small_disk / "run", 1)
    monkeypatch.setattr(write.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 0, 10**9))
    saver = Saver(small_disk / "run")
    with pytest.raises(CheckpointError, match="No space left on device; it takes 1,600,.*raise the quota"):
        saver.save(2, {"a": torch.zeros(5), "w": torch.zeros(400_000)}, {}, {}, {})
        saver.wait()
    assert [p.name for p in old.parent.iterdir()] == [old.name] and newest(old.parent) == old


def test_a_file_larger_than_the_process_may_write_is_a_failed_save_like_any_other(tmp_path):
    """The same as a full disk, where none can be mounted: the system refuses in the middle of a file."""
    old = save(tmp_path, 1)

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        saver = Saver(tmp_path)
        saver.save(2, {"w": torch.zeros(400_000)}, {}, {}, {})
        with pytest.raises(CheckpointError, match="step-00000002: File too large"):
            saver.wait()

    assert forked(limited) == 0
    assert [p.name for p in tmp_path.iterdir()] == [old.name] and newest(tmp_path) == old


def test_a_folder_that_became_read_only_is_named_and_the_last_checkpoint_intact(small_disk):
    old = save(small_disk / "run", 1)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    saver = Saver(small_disk / "run")
    saver.save(2, {"w": torch.zeros(10)}, {}, {}, {})
    with pytest.raises(CheckpointError, match=r"run/step-00000002: Read-only file system.*make the folder writable"):
        saver.wait()
    assert newest(old.parent) == old


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "step-00000002.part").write_text("a file in the way of the folder")
    with pytest.raises(CheckpointError, match="can't write the checkpoint .*step-00000002: .*step-00000002.part"):
        save(tmp_path, 2)


def test_an_error_behind_is_told_once_and_the_next_save_begins_anew(tmp_path):
    saver = Saver(tmp_path)
    saver.save(1, {"w": torch.zeros(2, dtype=torch.complex128)}, {}, {}, {})
    wait([saver._job])
    assert saver.failed
    with pytest.raises(CheckpointError, match="no name for torch.complex128"):
        saver.save(2, {"w": torch.zeros(2)}, {}, {}, {})
    assert not saver.failed
    saver.save(2, {"w": torch.zeros(2)}, {}, {}, {})
    assert saver.wait().name == "step-00000002"


def test_ranks_write_their_pieces_and_what_fails_on_one_fails_on_all_alike(tmp_path, monkeypatch):
    def act(peers):
        module = Odd(3)
        saver = Saver(tmp_path, **peers, keep=1)
        weights = module.state_dict() if peers["rank"] == 0 else {}
        pieces = pieces_of(module, peers["rank"], peers["world"])
        path = saver.save(1, weights, pieces if peers["rank"] != 1 else {}, {"zero": 2}, {})
        assert saver.wait() == path
        monkeypatch.setattr(write, "write_tensors", broken)
        saver.save(2, weights, pieces, {}, {})
        return saver.wait()

    def broken(path, tensors, real=write.write_tensors):
        if "00002" in path.name:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path, tensors)

    said = together(3, act)
    assert all(isinstance(error, CheckpointError) for error in said)
    assert len({str(error) for error in said}) == 1 and "training-00002" in str(said[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001"]
    path = newest(tmp_path)
    assert sorted(p.name for p in path.glob("training-*")) == ["training-00000.safetensors",
                                                               "training-00002.safetensors"]
    assert read_state(path)["world"] == 3 and read_state(path)["zero"] == 2


def test_a_disk_that_ranks_do_not_share_is_named(tmp_path):
    def act(peers):
        saver = Saver(tmp_path / str(peers["rank"]), **peers)
        saver.save(1, {"w": torch.zeros(2)}, {}, {}, {})
        return saver.wait()

    assert all("rank 1 does not see" in str(error) for error in together(2, act))


def test_two_processes_save_over_a_group_of_their_own_while_training_talks_over_another(tmp_path):
    started = multiprocessing.get_context("spawn")  # not forked: this process may be in a group of ranks already
    both = [started.Process(target=rank_of_two, args=(tmp_path, rank)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    path = newest(tmp_path / "run")
    assert Pieces(path)("w", 2, 9)["master"].tolist() == [6, 9, 12, 15, 18, 21, 24]


def test_a_limit_on_file_size_is_told_with_the_path_the_bytes_and_the_remedy(tmp_path):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
        with pytest.raises(CheckpointError, match=r"step-00000002: File too large; it takes [\d,]+ bytes.*ulimit -f"):
            save(tmp_path, 2)

    save(tmp_path, 1)
    assert forked(limited) == 0
    assert newest(tmp_path).name == "step-00000001"
