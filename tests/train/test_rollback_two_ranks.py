"""Rollbacks on two real ranks, at every ZeRO stage."""


def test_two_ranks_roll_back_together_to_what_they_would_be_without_the_bad_batches(toys, tmp_path):
    assert "ROLLED BACK ALIKE 3" in toys.run("roll", tmp_path, ranks=2)
