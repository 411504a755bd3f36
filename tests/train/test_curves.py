"""Every way of dividing a step against a plain PyTorch loop, in one process; on two ranks in test_two_ranks.py."""

import pytest
from engine_runs import run
from plain_loop import divisions, plain_loop


def test_zero_and_accumulation_give_the_curve_of_a_plain_loop(tmp_path):
    want = plain_loop()
    for each in divisions(1):
        assert run(tmp_path, **each) == pytest.approx(want, abs=1e-5), each["name"]
    assert want[-1] < want[0] - 0.5
