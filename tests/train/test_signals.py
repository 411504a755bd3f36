"""Training interrupted as real processes, alone and under a launcher."""

import signal

from unimm.checkpoint.manifest import verify
from unimm.train.signals import Interrupted


def test_a_signal_saves_says_how_to_continue_and_sets_the_exit_code(toys, tmp_path):
    # torchrun passes a signal on to its workers and then exits with 1 whatever they exit with.
    asked = [(signal.SIGINT, 1, 130), (signal.SIGTERM, 2, 1)]
    processes = [toys.start("interrupt", tmp_path / str(i), ranks) for i, (_, ranks, _) in enumerate(asked)]
    for i, (process, (number, _, code)) in enumerate(zip(processes, asked, strict=True)):
        with process:
            while "UNDER WAY" not in process.stdout.readline():
                assert process.poll() is None
            process.send_signal(number)
            rest = process.stdout.read()
        assert process.returncode == code
        saved = list((tmp_path / str(i)).glob("step-*"))
        assert len(saved) == 1 and str(saved[0]) in rest and "continue with: unimm train toy" in rest
        verify(saved[0])
    assert Interrupted(signal.SIGTERM, tmp_path, "").code == 143
