"""Skipped steps on two real ranks, at every ZeRO stage."""


def test_what_goes_wrong_on_one_rank_of_two_is_skipped_on_both(toys, tmp_path):
    assert "SKIPPED ALIKE 4" in toys.run("skip", tmp_path, ranks=2)
    names = sorted(path.name for path in (tmp_path / "zero 2" / "bad-batches").glob("*.json"))
    # At step 6 rank 1's gradient alone was NaN, which no rank can tell; at step 9 it was rank 1's loss.
    assert names == [f"step-0000000{step}-rank-0000{rank}.json" for step, rank in ((6, 0), (6, 1), (9, 1))]
