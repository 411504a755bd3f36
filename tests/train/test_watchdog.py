"""Which rank is late and where it stands, told while the run hangs."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import watchdog_toys

from unimm.train.watchdog import Watchdog

HERE = Path(__file__).parent


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Run:
    """Several ranks' watchdogs in this process, on one clock, without threads."""

    def __init__(self, folder: Path, world: int, ends: bool = False):
        self.clock, self.said, self.ended = Clock(), [], []
        (folder / "heartbeats").mkdir(exist_ok=True)
        self.dogs = [Watchdog(folder, rank, world, 10, self.ended.append if ends else None,
                              lambda text, rank=rank: self.said.append((rank, text)), self.clock)
                     for rank in range(world)]

    def beat(self, where: str, step: int, *which: int) -> None:
        for rank in which or range(len(self.dogs)):
            self.dogs[rank].beat(step, where)

    def after(self, seconds: float, silent=()) -> list[tuple[int, str]]:
        """What is said when all threads but the silent ones look, rank 0's last."""
        self.clock.now += seconds
        self.said.clear()
        for rank in reversed(range(len(self.dogs))):
            if rank not in silent:
                self.dogs[rank].look()
        return list(self.said)


def test_the_rank_that_is_behind_is_named_with_its_stack_and_those_that_wait_for_it_are_not_blamed(tmp_path):
    run = Run(tmp_path, 3)
    run.beat("data", 12)
    run.beat("collective", 12, 0, 2)
    assert run.after(9) == []
    (own2, text2), (own1, text1), (own0, text0) = run.after(2)
    assert (own2, own1, own0) == (2, 1, 0)
    first, late, *rest = text0.splitlines()
    assert first == "watchdog: 3 of 3 ranks do not move"
    assert late.startswith("rank 1 on ") and "in data of step 12 since" in late and "11 seconds" in late
    assert any("test_watchdog.py" in line and "the_rank_that_is_behind" in line for line in rest)
    assert rest[-1] == "waiting for it: ranks 0, 2 (in collective of step 12)"
    assert text1.startswith("rank 1 on ") and "test_watchdog.py" in text1  # its own log has it, too
    assert text2.startswith("rank 2 on ")


def test_a_hang_is_told_once_and_so_is_its_end(tmp_path):
    run = Run(tmp_path, 2)
    run.beat("forward", 3)
    assert len(run.after(11)) == 2
    assert run.after(5) == []
    run.beat("backward", 3)
    assert run.after(1) == [(0, "watchdog: all 2 ranks move again")]
    assert run.after(1) == []


def test_all_at_one_place_is_nobody_s_fault(tmp_path):
    run = Run(tmp_path, 2)
    run.beat("collective", 5)
    assert "all ranks stand at the same place" in dict(run.after(11))[0]


def test_a_slow_rank_that_still_moves_is_not_late(tmp_path):
    run = Run(tmp_path, 2)
    for step in range(5):
        run.beat("data", step)
        assert run.after(9) == []


def test_a_process_that_is_gone_is_told_from_one_that_stands(tmp_path):
    run = Run(tmp_path, 3)
    run.beat("data", 4)
    run.after(1)
    for _ in range(3):
        run.beat("collective", 4)
        said = run.after(4, silent=(2,))
    (rank, text), = said
    assert rank == 0 and text.splitlines()[0] == "watchdog: 1 of 3 ranks do not move"
    assert "rank 2 on " in text and "last seen in data of step 4: no sign of life" in text


def test_a_rank_that_never_wrote_a_file_is_told_and_one_that_left_in_order_is_not(tmp_path):
    run = Run(tmp_path, 3)
    run.after(1, silent=(2,))
    (tmp_path / "heartbeats" / "rank-00001.json").unlink()
    run.beat("save", 9, 0)
    (rank, text), = run.after(10.5, silent=(1, 2))
    assert rank == 0 and "rank 2: no sign of life" in text and "rank 1" not in text


def test_it_can_end_a_process_that_stands_still_after_it_was_reported(tmp_path):
    run = Run(tmp_path, 2, ends=True)
    run.beat("data", 1, 1)
    run.after(11)
    assert run.ended == []
    run.after(4.5)
    assert len(run.ended) == 2 and "rank 1 on " in run.ended[0] and "data of step 1" in run.ended[0]


def test_a_full_disk_does_not_end_the_watch(tmp_path, monkeypatch):
    run = Run(tmp_path, 1)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    run.beat("save", 2)
    assert "rank 0 on " in run.after(11)[0][1] and "save of step 2" in run.said[0][1]


def test_it_is_off_without_seconds_and_cleans_up_after_itself(tmp_path):
    Watchdog(tmp_path, 0, 1, 0).start().stop()
    assert list(tmp_path.iterdir()) == []
    dog = Watchdog(tmp_path, 0, 1, 1000).start()
    assert json.loads((tmp_path / "heartbeats" / "rank-00000.json").read_text())["where"] == "start"
    dog.stop()
    assert list((tmp_path / "heartbeats").iterdir()) == [] and not dog.thread.is_alive()


@pytest.mark.parametrize(("how", "wanted", "named"), [
    ("data", "waiting for it: ranks 0 (in collective of step 4)", ("is late: in data of step 4", "in stall_in_data")),
    ("lock", "in hold_the_lock", ("no sign of life",))])
def test_of_two_real_processes_the_one_that_stands_still_is_named_with_its_line(tmp_path, how, wanted, named):
    """Rank 1 waits in its data for ever, or holds Python's lock so that not even its threads run."""
    command = [sys.executable, str(HERE / "watchdog_toys.py"), how, str(tmp_path), str(tmp_path / "store")]
    processes = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True,
                                  env=watchdog_toys.ENVIRONMENT) for rank in range(2)]
    guard = threading.Timer(60, lambda: [process.kill() for process in processes])
    guard.start()
    try:
        told = ""
        for line in processes[0].stderr:
            told += line
            if wanted in line:
                break
        assert wanted in told and "rank 1 on" in told and "watchdog_toys.py" in told
        assert all(text in told for text in named), told
    finally:
        guard.cancel()
        for process in processes:
            process.kill()
            process.communicate()
