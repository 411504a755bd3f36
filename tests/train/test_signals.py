"""Training interrupted as real processes, alone and under a launcher."""

import json
import os
import signal
import subprocess

import pytest

from unimm.checkpoint.folders import verify
from unimm.train.signals import Interrupted, verdict, votes


def under_way(process: subprocess.Popen, ranks: int) -> list[int]:
    """The process ids of all ranks, once each has trained a few steps."""
    found = []
    while len(found) < ranks:
        line = process.stdout.readline()
        assert line or process.poll() is None
        found += [int(line.split()[2])] if "UNDER WAY" in line else []
    return found


# torchrun passes SIGINT and SIGTERM on to its workers, and exits with 1 whatever they exit with.
@pytest.mark.parametrize(("number", "ranks", "code", "own"), [(signal.SIGINT, 1, 130, 130), (signal.SIGTERM, 2, 1, 143),
                                                              (signal.SIGUSR1, 1, 75, 75), (signal.SIGUSR1, 2, 1, 75)])
def test_a_signal_saves_says_how_to_continue_and_sets_exit_code_and_status(toys, tmp_path, number, ranks, code, own):
    with toys.start("interrupt", tmp_path, ranks) as process:
        workers = under_way(process, ranks)
        # SLURM sends its notice to the processes themselves; one rank is enough for all to save.
        os.kill(workers[-1] if number == signal.SIGUSR1 else process.pid, number)
        rest = process.stdout.read()
    assert process.returncode == code
    saved = list(tmp_path.glob("step-*"))
    assert len(saved) == 1 and str(saved[0]) in rest and "continue with: unimm train toy" in rest
    verify(saved[0])
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["code"], status["checkpoint"]) == ("resume", own, str(saved[0]))
    assert status["stage"] == "train" and status["step"] == int(saved[0].name[5:]) and status["errors"] == []
    assert f"stopped by {number.name}" in status["message"]


def test_codes_tell_a_person_s_stop_from_a_cluster_s(tmp_path):
    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    assert [Interrupted(number, tmp_path, "").code for number in stops] == [130, 143, 75]


def test_all_ranks_obey_one_signal_whichever_ranks_got_which(tmp_path):
    def agreed(*received: int) -> int:
        return verdict([sum(column) for column in zip(*map(votes, received))])

    assert agreed(0, 0) == 0
    assert agreed(0, signal.SIGUSR1) == signal.SIGUSR1
    assert agreed(signal.SIGTERM, signal.SIGUSR1) == signal.SIGTERM
    assert agreed(signal.SIGUSR1, 0, signal.SIGINT) == signal.SIGINT
    assert Interrupted(signal.SIGUSR1, tmp_path, "").code == 75
