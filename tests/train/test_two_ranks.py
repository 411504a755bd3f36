"""Two real ranks against one process, at every ZeRO stage."""

import pytest
from train_toys import CURVES, curve


def test_two_ranks_equal_one_process_on_the_same_batches_and_resume_bit_equal(toys, tmp_path, plain_curves):
    assert "RESUMED BIT-EQUAL" in toys.run("two", tmp_path, ranks=2)
    for name in CURVES:
        within = 2e-2 if name.startswith("bf16") else 1e-5
        assert curve(tmp_path / name) == pytest.approx(plain_curves[name], abs=within), name
