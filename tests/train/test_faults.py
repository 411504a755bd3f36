"""Training killed as a real process."""


def test_a_run_killed_at_any_step_or_sync_of_a_checkpoint_continues_bit_for_bit(toys, tmp_path):
    assert "SURVIVED 20" in toys.run("faults", tmp_path)
