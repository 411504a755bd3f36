"""Training killed and interrupted as a real process."""

import signal


def test_a_run_killed_at_any_step_or_sync_of_a_checkpoint_continues_bit_for_bit(toys, tmp_path):
    assert "SURVIVED 20" in toys.run("faults", tmp_path)


def test_a_signal_saves_says_how_to_continue_and_sets_the_exit_code(toys, tmp_path):
    asked = {signal.SIGINT: 130, signal.SIGTERM: 143}
    processes = {number: toys.start("interrupt", tmp_path / number.name) for number in asked}
    for number, process in processes.items():
        with process:
            while "UNDER WAY" not in process.stdout.readline():
                assert process.poll() is None
            process.send_signal(number)
            rest = process.stdout.read()
        assert process.returncode == asked[number]
        saved = list((tmp_path / number.name).glob("step-*"))
        assert len(saved) == 1 and str(saved[0]) in rest and "continue with: unimm train toy" in rest
